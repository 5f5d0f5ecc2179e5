"""Checks that a checkpoint fits this model and this optimizer: names, shapes, dtypes, and finite numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.records.checkpoint.first_state import form
from largebatch.records.checkpoint.loading import Checkpoint
from largebatch.records.checkpoint.manifest import CheckpointError
from largebatch.records.checkpoint.optimizer_fit import has_fixed_state, matching_groups
from largebatch.records.checkpoint.optimizer_state import listed, named_parameters
from largebatch.records.checkpoint.reading import brief, plain
from largebatch.records.checkpoint.run_values import require_run_values

STATISTICS = "statistics"
"""The file of a checkpoint with the buffers that differ between ranks; absent where none does."""

COMPRESSION = "compression"
OWN_OBSERVERS = "own_observers"  # also the key of their plain values
"""The file with what a compression of gradients goes by; absent without one that remembers."""

EMA = "ema"
"""The file with the averages of weights, and the key of their counts; absent where there are none."""

_COMPRESSED = re.compile(r"(counters|[pq]/\d{1,9}|error/\d{1,9})")

_MOVING = ("lr", "initial_lr")  # with the schedule
_RUNNING_STATISTICS = ("running_mean", "running_var")


def require_run_fit(
    checkpoint: Checkpoint,
    module: nn.Module,
    optimizer: Optimizer,
    *,
    keeps: frozenset[str] = frozenset(),
    scaled: ScaledGroups | None = None,
) -> None:
    """Raise CheckpointError unless a run of this model and this optimizer could go on from the checkpoint.

    Args:
        checkpoint: its tensors may lie on the device "meta"; then their values are not looked at.
        module: the run's, never wrapped.
        optimizer: the run's.
        keeps: options of the optimizer that were changed on purpose.
        scaled: the values of its groups that follow the batch; None: none do.
    """
    require_run_values(checkpoint)
    optional = {STATISTICS, COMPRESSION, OWN_OBSERVERS, EMA}
    if strangers := (checkpoint.tensors.keys() | optional) ^ {"model", "optimizer", *optional}:
        raise CheckpointError(
            f"{checkpoint.path}: a run has model.safetensors and optimizer.safetensors, and here {brief(strangers)} "
            "differ. Use an older checkpoint."
        )
    require_model_fit(checkpoint, module)
    _check_memory(checkpoint, module)
    parameters = named_parameters(optimizer, {one: name for name, one in module.named_parameters()})
    try:
        groups = matching_groups(
            optimizer, checkpoint.tensors["optimizer"], checkpoint.values["optimizer"], parameters, keeps=keeps
        )
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    if has_fixed_state(optimizer):
        moving = frozenset() if scaled is None else scaled.keys
        most = checkpoint.values["samples_seen"] if "betas" in moving else checkpoint.step
        faults = [*_counted_too_far(checkpoint, most), *_other_options(optimizer, groups, keeps | moving)]
        faults += _of_no_stage(groups, keeps, scaled)
        if faults:
            raise CheckpointError(f"{checkpoint.path}: {'; '.join(faults[:3])}. Use an older checkpoint.")


def require_model_fit(checkpoint: Checkpoint, module: nn.Module, *, any_precision: bool = False) -> None:
    """Raise CheckpointError unless the model can take the checkpoint's weights as they are.

    Args:
        checkpoint: its tensors may lie on the device "meta"; then their values are not looked at.
        module: with its initial values: a tensor that is not finite there need not be finite in the checkpoint.
        any_precision: whether floating-point weights may be of another dtype, and are converted.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    saved = checkpoint.tensors.get("model")
    if saved is None:
        raise CheckpointError(f"{checkpoint.path}: holds no model.safetensors. Use an older checkpoint.")
    if own.keys() == saved.keys():
        others = [
            f"{name} is {form(saved[name])} in the checkpoint and {form(value)} in the model"
            for name, value in own.items()
            if not _is_alike(saved[name], value, any_precision)
        ]
    elif _renames(module):
        return  # what its own hooks make of the names is seen when it is loaded
    else:
        missing, extra = (sorted(one) for one in (own.keys() - saved.keys(), saved.keys() - own.keys()))
        others = [f"it lacks {brief(missing) if missing else 'nothing'} and has {brief(extra) if extra else 'nothing'} "
                  "beyond it"]  # fmt: skip
    if others:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another model: {'; '.join(others[:3])}. Give the model of its run, which is "
            "in the run's config.yaml, or use an older checkpoint."
        )
    if unsound := unsound_weights(module, saved):
        raise CheckpointError(f"{checkpoint.path}: {unsound} is not finite. Use an older checkpoint.")


def unsound_weights(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The name of a saved tensor that must be finite and is not: a parameter, or a running mean or variance.

    Other buffers may hold any value, such as masks of minus infinity or the largest value so far; so may frozen
    parameters that the model starts with.

    Args:
        module: gives the names, with its initial values.
        state: the tensors to check; those on the device "meta" are not looked at.
    """
    for name, own, may_start_so in _expected_finite(module):
        value = state.get(name)
        if value is None or value.is_meta or _are_finite([value]) or (may_start_so and not _are_finite([own])):
            continue
        return name
    return None


@dataclass(frozen=True)
class Soundness:
    """Whether the tensors of a model that must be finite are, see `unsound_weights`: one flag each.

    The flags are on the device of the model. Whoever asks for `first_unsound` waits for them, once for all tensors.
    """

    names: list[str]
    flags: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> Soundness:
        """The flags of a model as it is now."""
        checked = [(name, one) for name, one, may_start_so in _expected_finite(module) if not may_start_so]
        numbers = [(name, one.detach()) for name, one in checked if one.is_floating_point() or one.is_complex()]
        flags = [torch.isfinite(one.float() if one.dtype.itemsize == 1 else one).all() for _, one in numbers]
        return cls([name for name, _ in numbers], torch.stack(flags) if flags else torch.ones(0, dtype=torch.bool))

    def first_unsound(self) -> str | None:
        """The name of the first tensor that is not finite."""
        return next((name for name, flag in zip(self.names, self.flags.tolist(), strict=True) if not flag), None)


def _expected_finite(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, tensor, and whether it may hold other values if the model starts with them."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    statistics = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, one in module.named_modules(remove_duplicate=False)
        if isinstance(one, nn.modules.batchnorm._NormBase)
        for name in _RUNNING_STATISTICS
    }
    yield from ((name, one, not one.requires_grad) for name, one in parameters.items())
    yield from ((name, buffers[name], False) for name in sorted(statistics & buffers.keys()))


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    numbers = (one for one in tensors if one.is_floating_point() or one.is_complex())
    return all(bool(torch.isfinite(one.float() if one.dtype.itemsize == 1 else one).all()) for one in numbers)


def _is_alike(saved: Tensor, own: Tensor, any_precision: bool) -> bool:
    is_number = saved.is_floating_point() and own.is_floating_point()
    return saved.shape == own.shape and (saved.dtype == own.dtype or (any_precision and is_number))


def _renames(module: nn.Module) -> bool:
    return any(one._load_state_dict_pre_hooks for one in module.modules())


def _check_memory(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Refuse tensors per rank that are no buffers of the model, and an order of gradients of other parameters."""
    buffers = dict(module.named_buffers())
    faults = [
        f"{STATISTICS}.safetensors: {plain(name)} is {form(rows)}"
        for name, rows in checkpoint.tensors.get(STATISTICS, {}).items()
        if name not in buffers
        or (rows.shape[1:], rows.dtype) != (buffers[name].shape, buffers[name].dtype)
        or rows.dim() == 0
        or not (rows.is_meta or _are_finite([rows]))
    ]
    faults += [
        f"{COMPRESSION}.safetensors: {plain(name)} is {form(values)}"
        for name, values in checkpoint.tensors.get(COMPRESSION, {}).items()
        if not _COMPRESSED.fullmatch(name)
        or values.dim() != 1 + name.startswith("error/")
        or not (values.is_meta or _are_finite([values]))
    ]
    trainable = {name: one for name, one in module.named_parameters(remove_duplicate=False) if one.requires_grad}
    averages = checkpoint.tensors.get(EMA, {})
    faults += [
        f"{EMA}.safetensors: {plain(name)} is {form(averages[name]) if name in averages else 'missing'}"
        for name in sorted(averages.keys() | trainable.keys() if averages else ())
        if name not in averages
        or name not in trainable
        or averages[name].shape != trainable[name].shape
        or not (averages[name].is_meta or _are_finite([averages[name]]))
    ]
    order = checkpoint.values.get("memory", {}).get("gradient", {}).get("bucket_order") or []
    if len(set(order)) < len(order) or set(order) - dict(module.named_parameters()).keys():
        faults.append("the order of its gradients is not of this model's parameters")
    if faults:
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(faults[:3])}. Use an older checkpoint.")


def _counted_too_far(checkpoint: Checkpoint, most: int) -> list[str]:
    """Parameters that count more optimizer steps than the run can have had."""
    return [
        f"{brief(key)} counts {value.item():g} steps, and the run had {checkpoint.step}"
        for key, value in checkpoint.tensors["optimizer"].items()
        if key.endswith("/step") and value.numel() == 1 and not value.is_meta and value.item() > most
    ]


def _of_no_stage(
    groups: list[tuple[int, dict[str, Any]]], keeps: frozenset[str], scaled: ScaledGroups | None
) -> list[str]:
    """Groups whose values that follow the batch are those of no stage of the run."""
    if scaled is None or scaled.keys & keeps:
        return []
    faults = []
    for place, (_, saved) in enumerate(groups):
        stages = [{key: listed(value) for key, value in stage[place].items()} for stage in scaled.values]
        found = {key: saved["options"].get(key) for key in stages[0]}
        if found not in stages:
            faults.append(f"group {place} of the optimizer has {brief(found)}, which no batch of the run makes of the "
                          "config's values")  # fmt: skip
    return faults


def _other_options(optimizer: Optimizer, groups: list[tuple[int, dict[str, Any]]], keeps: frozenset[str]) -> list[str]:
    """Options that only a config sets, with the value that another config has set."""
    return [
        f"the option {brief(key)} of the optimizer is {brief(value)}, and the config says {brief(group[key])}"
        for group, (_, saved) in zip(optimizer.param_groups, groups, strict=True)
        for key, value in saved["options"].items()
        if key in group and key not in keeps.union(_MOVING) and value != listed(group[key])
    ]

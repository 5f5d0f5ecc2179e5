"""Checks that a saved optimizer state fits this optimizer: class, parameters, groups, options, names, values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.records.checkpoint.first_state import (
    EXECUTION_OPTIONS,
    MEMBERS,
    state_after_two_steps,
    state_form,
    stepped_twin,
)
from largebatch.records.checkpoint.manifest import CheckpointError
from largebatch.records.checkpoint.reading import brief, plain
from largebatch.records.checkpoint.run_values import PackedOptimizer, require_values

_FIXED_STATE = ("torch.optim.", "largebatch.optim.")


def matching_groups(
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    *,
    keeps: frozenset[str] = frozenset(),
) -> list[tuple[int, dict[str, Any]]]:
    """The saved group with the same parameters for each group of the optimizer: its number and contents.

    Args:
        optimizer: the one to restore.
        tensors: of the state; values on the device "meta" are not checked.
        values: the plain values that belong to them.
        parameters: the optimizer's, by name.
        keeps: options that were changed on purpose: state that only the former values need may be left over.

    Raises:
        CheckpointError: for anything that `pack_optimizer` would not have made of this optimizer.
    """
    require_values(PackedOptimizer, values, "The state of the optimizer")
    if values["optimizer"] != type(optimizer).__name__:
        raise CheckpointError(
            f"The checkpoint holds the state of {plain(values['optimizer'])}, the run uses "
            f"{type(optimizer).__name__}. Resume with the optimizer of the checkpoint, or start a new run from its "
            "weights."
        )
    _check_shapes(parameters, values)
    _check_tensors(tensors, values)
    groups = _groups(optimizer, values, {parameter: name for name, parameter in parameters.items()})
    for group, (number, saved) in zip(optimizer.param_groups, groups, strict=True):
        faults = [_option_fault(group, key, value) for key, value in saved["options"].items()]
        faults += [_option_fault(group, key, tensors[option_key(number, key)]) for key in saved["tensors"]]
        _refuse(faults)
        _refuse([_refused_options(optimizer, group, saved["options"])])
    _check_state(optimizer, tensors, values, parameters, is_fixed=has_fixed_state(optimizer) and not keeps)
    return groups


def tensor_key(name: str, key: str) -> str:
    """The name of the tensor with the state `key` of the parameter `name`.

    "~" and "/" of the name are written "~0" and "~1", as in a JSON pointer (RFC 6901): no two pairs share a key.

    >>> tensor_key("blocks.0/weight", "exp_avg")
    'blocks.0~1weight/exp_avg'
    """
    return f"{name.replace('~', '~0').replace('/', '~1')}/{key}"


def option_key(number: int, key: str) -> str:
    """The name of the tensor with the option `key` of a group."""
    return f"~group/{number}/{key}"  # no escaped name begins with "~g"


def has_fixed_state(optimizer: Optimizer) -> bool:
    """Whether it is torch's or ours: these keep the names of their state and never change their own options."""
    return f"{type(optimizer).__module__}.".startswith(_FIXED_STATE)


def _refuse(faults: list[str | None]) -> None:
    if any(faults):
        listed = "; ".join([fault for fault in faults if fault][:3])
        raise CheckpointError(f"The state of the optimizer does not fit it: {listed}. Use an older checkpoint.")


def _check_shapes(parameters: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    pairs = [pair for group in values["groups"] for pair in group["shapes"].items()]
    saved = dict(pairs)
    missing, extra = sorted(parameters.keys() - saved.keys()), sorted(saved.keys() - parameters.keys())
    if missing or extra or len(pairs) > len(saved):
        twice = "" if len(pairs) == len(saved) else " A parameter is in two of its groups."
        raise CheckpointError(
            f"The checkpoint belongs to other parameters: it lacks {brief(missing)} of the optimizer, and the "
            f"optimizer lacks {brief(extra)} of it.{twice} Resume with the model of the checkpoint."
        )
    others = [
        f"{name} {brief(saved[name])} in the checkpoint, {list(parameter.shape)} in the model"
        for name, parameter in parameters.items()
        if list(parameter.shape) != saved[name]
    ]
    if others:
        raise CheckpointError(
            f"Parameters of other shapes: {'; '.join(others)}. Resume with the model of the checkpoint."
        )


def _check_tensors(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    expected = {tensor_key(name, key) for name, entries in values["state"].items() for key in entries["tensors"]}
    expected |= {option_key(number, key) for number, group in enumerate(values["groups"]) for key in group["tensors"]}
    missing, extra = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or extra:
        raise CheckpointError(
            f"The tensors are not those that the values list: {brief(missing)} are missing, {brief(extra)} are left "
            "over. Pass both as they were saved together."
        )


def _groups(
    optimizer: Optimizer, values: Mapping[str, Any], names: Mapping[Tensor, str]
) -> list[tuple[int, dict[str, Any]]]:
    saved = {frozenset(group["shapes"]): (number, group) for number, group in enumerate(values["groups"])}
    matching = []
    for number, group in enumerate(optimizer.param_groups):
        members = frozenset(names[parameter] for parameter in group["params"])
        if members not in saved:
            raise CheckpointError(
                f"Group {number} of {type(optimizer).__name__} has {brief(sorted(members))}; the groups of the "
                f"checkpoint are {brief([sorted(one) for one in saved])}. Resume with the parameter groups of the "
                "checkpoint."
            )
        matching.append(saved[members])
    return matching


def _option_fault(group: Mapping[str, Any], key: str, value: Any) -> str | None:
    """An option may have moved since, or be one that the optimizer gives itself later; its kind stays."""
    if key in MEMBERS | EXECUTION_OPTIONS:
        return f"{brief(key)} is no option that is saved"
    now = group.get(key)
    if isinstance(value, Tensor):
        fits = not isinstance(now, Tensor) or (value.shape, value.dtype) == (now.shape, now.dtype)
        return None if fits and not _number_fault(key, value) else f"the option {brief(key)} is another tensor"
    if now is None or (_kind(value) == _kind(now) and (_is_finite(value) or not _is_finite(now))):
        return None
    return f"the option {brief(key)} is {brief(value)} in place of {brief(now)}"


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "number"
    if isinstance(value, (list, tuple)):
        return [_kind(one) for one in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def _is_finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _refused_options(optimizer: Optimizer, group: Mapping[str, Any], saved: Mapping[str, Any]) -> str | None:
    """The class's own objection to the saved options, where it takes the group's."""
    own = {key: value for key, value in group.items() if key not in MEMBERS | EXECUTION_OPTIONS}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    if _refusal(optimizer, group, own) is not None or (refusal := _refusal(optimizer, group, own | options)) is None:
        return None
    return f"{type(optimizer).__name__} refuses its options ({brief(refusal)[1:-1]})"


def _refusal(optimizer: Optimizer, group: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    few = [nn.Parameter(torch.empty_like(one, device="meta")) for one in group["params"][:1]]
    try:
        stepped_twin(optimizer, [{"params": few}], steps=0, options=options)
    except Exception as error:
        return str(error)
    return None


def _check_state(
    optimizer: Optimizer,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    *,
    is_fixed: bool,
) -> None:
    if strangers := values["state"].keys() - parameters.keys():
        _refuse([f"there is state of {brief(sorted(strangers))}, which it does not have"])
    known = state_after_two_steps(optimizer, parameters)
    faults: list[str | None] = []
    for name, packed in values["state"].items():
        entries = {key: tensors[tensor_key(name, key)] for key in packed["tensors"]}
        if len(entries) < len(packed["tensors"]) or entries.keys() & packed["scalars"].keys():
            faults.append(f"{name} has an entry twice")
        entries |= packed["scalars"]
        if expected := known.get(name):
            missing, extra = expected.keys() - entries.keys(), entries.keys() - expected.keys()
            if missing or (extra and is_fixed):
                faults.append(f"the state of {name} is {brief(sorted(entries))} in place of {brief(sorted(expected))}")
        for key, value in entries.items():
            fault = _entry_fault(key, value, parameters[name], (expected or {}).get(key))
            faults.append(fault and f"{key if key.isprintable() else brief(key)} of {name} {fault}")
    _refuse(faults)


def _entry_fault(key: str, value: Any, parameter: Tensor, expected: Any) -> str | None:
    if isinstance(value, Tensor) != isinstance(expected, Tensor) and expected is not None:
        return f"is a {state_form(value)} in place of a {state_form(expected)}"
    is_no_number = _is_no_number(expected)  # an initial value may stay: "not measured yet", the largest so far
    if not isinstance(value, Tensor):
        is_nan = isinstance(value, float) and math.isnan(value) and not is_no_number
        is_wrong = expected is not None and _kind(value) != _kind(expected)
        return f"is {brief(value)}" if is_wrong or is_nan else None
    if expected is not None and (value.shape, value.dtype) != (expected.shape, expected.dtype):
        return f"is a {state_form(value)} in place of a {state_form(expected)}"
    return None if is_no_number else _number_fault(key, value, parameter.shape)


def _is_no_number(value: Any) -> bool:
    """Whether a state holds NaN or infinity."""
    if not isinstance(value, Tensor):
        return isinstance(value, float) and not math.isfinite(value)
    is_number = value.is_floating_point() or value.is_complex()
    return is_number and not value.is_meta and not bool(torch.isfinite(value.to(torch.complex128)).all())


def _number_fault(key: str, value: Tensor, shape: torch.Size | None = None) -> str | None:
    """Infinite sums of squares and maxima exist, but an infinite mean of gradients not beside finite weights."""
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return None
    if value.dtype.itemsize == 1:
        value = value.float()
    if bool(torch.isfinite(value).all()):
        return f"is {value.item():g}" if key == "step" and value.numel() == 1 and value.item() < 0 else None
    if bool(torch.isnan(value).any()):
        return "holds NaN"
    is_mean = value.shape == shape and not value.is_complex() and bool((value < 0).any())
    return "holds infinity" if is_mean or key == "step" else None

"""Tries to save and resume: no run may end well and then turn out to have no usable checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.generators import preserved_generators, seed_generators
from largebatch.records.checkpoint import (
    EXECUTION_OPTIONS,
    CheckpointError,
    encode_values,
    pack_optimizer,
    require_storable,
    unpack_optimizer,
)
from largebatch.run.checks.dry_run.as_before import as_before
from largebatch.run.checks.memory import state_of
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import make
from largebatch.training.raised import error_text

_MOST_LOADED = 2**26  # bytes of state whose loading is tried with other values; larger ones are compared by name
_MOST_ROWS = 8  # of each dimension of the optimizer's test parameters


def try_saving(config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that the state of model and optimizer can be saved and loaded, and that a resumed run continues exactly.

    The optimizer is tried on a corner of one parameter per group and number of dimensions.

    Raises:
        ConfigError: if one of these fails; names the part.
    """
    try:
        _try_model(model)
    except ValueError as error:
        raise ConfigError([f"model: {error}"]) from error
    try:
        _try_optimizer(config, model, optimizer)
    except (ValueError, CheckpointError) as error:
        raise ConfigError([f"optimizer: {error}"]) from error


def _try_model(model: nn.Module) -> None:
    state = state_of(model)
    strangers = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers:
        kinds = ", ".join(f"{name} is a {type(state[name]).__name__}" for name in strangers[:3])
        raise ValueError(
            f"its state_dict holds values that are no tensors ({kinds}), and a checkpoint holds only tensors: the run "
            "could not be saved. Keep them in buffers, or leave them out of get_extra_state."
        )
    try:
        require_storable({"model": state}, {})
    except ValueError as error:
        raise ValueError(f"its state_dict cannot be saved: {error}") from None
    size = sum(value.nbytes for value in state.values())
    with as_before(model) if size <= _MOST_LOADED else torch.no_grad():
        _try_loading(model, _other_values(state) if size <= _MOST_LOADED else state)


def _try_loading(model: nn.Module, state: dict[str, Tensor]) -> None:
    name = type(model).__name__
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:
        raise ValueError(
            f"{name} does not load its own state_dict ({error_text(error)}): a run could not be resumed. Correct "
            "load_state_dict, or the hooks of state_dict."
        ) from error
    if missing or unexpected:
        raise ValueError(
            f"{name} does not load its own state_dict: it lacks {_few(missing)} and has {_few(unexpected)} beyond the "
            "model. A run could not be resumed. Let state_dict hold all parameters and persistent buffers under their "
            "names."
        )
    changed = [key for key, value in model.state_dict().items() if not _same(value, state.get(key))]
    if changed:
        raise ValueError(
            f"{name} does not load the values of its state_dict exactly: {', '.join(changed[:3])} differ. A resumed "
            "run would continue from other weights. Let load_state_dict copy the values unchanged."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


def _other_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the values of each tensor reversed, to see whether they are loaded. Shared tensors stay."""
    owners = Counter(value.untyped_storage().data_ptr() for value in state.values())
    return {
        name: value.detach().clone().reshape(-1).flip(0).reshape(value.shape)
        if owners[value.untyped_storage().data_ptr()] == 1
        else value.detach().clone()
        for name, value in state.items()
    }


def _same(value: Any, saved: Tensor | None) -> bool:
    if saved is None or value.dtype != saved.dtype or value.shape != saved.shape:
        return False
    return bool(torch.equal(_bytes(value), _bytes(saved)))


def _bytes(value: Tensor) -> Tensor:
    return value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _try_optimizer(config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Compare two steps in a row with one step, a checkpoint, and another step."""
    names: dict[Tensor, str] = {one: name for name, one in model.named_parameters()}
    first = _Twin(config, optimizer, names)
    first.step()
    tensors, values = pack_optimizer(first.optimizer, first.names)
    require_storable({"optimizer": tensors}, values)
    second = _Twin(config, optimizer, names, first.parameters)
    unpack_optimizer(second.optimizer, tensors, json.loads(encode_values(values)), second.names)
    first.step()
    second.step()
    if any(not _same(a, b) for a, b in zip(first.parameters, second.parameters, strict=True)):
        raise ValueError(
            f"{type(optimizer).__name__} takes a different step after its state was saved and loaded: it keeps values "
            "outside of `state` and of the options of its groups, which a checkpoint does not hold, so a resumed run "
            "would differ. Keep these values in them, as tensors or numbers."
        )


class _Twin:
    """A copy of an optimizer over a few small parameters: corners of its own, or copies of `values`."""

    def __init__(
        self,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer,
        names: Mapping[Tensor, str],
        values: list[nn.Parameter] | None = None,
    ) -> None:
        groups: list[dict[str, Any]] = []
        self.parameters: list[nn.Parameter] = []
        self.names: dict[Tensor, str] = {}
        for group in optimizer.param_groups:
            few = {one.dim(): (names[one], one) for one in group["params"]}
            own = [nn.Parameter(_corner(one.detach()).clone()) for _, one in few.values()]
            own_names = [name for name, _ in few.values()]
            options = {key: value for key, value in group.items() if key not in EXECUTION_OPTIONS}
            groups.append({**options, "params": own, "param_names": own_names})
            self.parameters += own
            self.names |= dict(zip(own, own_names, strict=True))
        if values is not None:
            for one, value in zip(self.parameters, values, strict=True):
                one.data.copy_(value.data)
        # Execution options of a device are not tried; the groups already have their weight decay.
        node = {
            key: value for key, value in config.optimizer.items() if key not in {*EXECUTION_OPTIONS, "weight_decay"}
        }
        self.optimizer: torch.optim.Optimizer = make("optimizer", node, params=groups, lr=config.scaling.base_lr)

    def step(self) -> None:
        """One step on gradients that are the same for every twin."""
        generator, devices = torch.Generator().manual_seed(0), [*{one.device for one in self.parameters}]
        for one in self.parameters:
            one.grad = torch.randn(one.shape, generator=generator, dtype=one.dtype).to(one.device)
        try:
            with preserved_generators(), torch.random.fork_rng([one for one in devices if one.type == "cuda"]):
                seed_generators(0, devices[0] if devices else None)
                self.optimizer.step()
        except Exception as error:
            raise ValueError(
                f"{type(self.optimizer).__name__} fails in a step ({error_text(error)}). A run calls step() once per "
                "global batch, without a closure, after all gradients were computed."
            ) from error


def _corner(value: Tensor) -> Tensor:
    return value[tuple(slice(_MOST_ROWS) for _ in value.shape)]

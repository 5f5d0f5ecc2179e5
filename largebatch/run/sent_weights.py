"""Weights that rank 0 makes and sends: a large model is made once in a job, not by each rank in its host's memory."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from largebatch.distributed.checksums import tensors_sha256
from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.models.modes import train_mode
from largebatch.run.checks.memory import Undrawn
from largebatch.run.config.model_node import weights_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.initial_state import initial_model, made_model
from largebatch.run.model_settings import as_configured
from largebatch.run.start_weights import load_start_weights

SENT_FROM_BYTES = 2**28
"""Smaller models are made by every rank: that takes a second, and shows that no draw depends on the rank."""


class NotHollowError(ValueError):
    """A model cannot be made without the values of its tensors."""


def hollow_model(
    config: TrainConfig, device: torch.device, *, mode: AbstractContextManager[Any] | None = None
) -> nn.Module:
    """The model of the config with uninitialised memory on `device`: another rank sends its values.

    Args:
        config: of the run.
        device: of the memory.
        mode: in which it is allocated; one of fake tensors allocates none.

    Raises:
        NotHollowError: if it needs values to be made, or keeps tensors outside of parameters and buffers.
    """
    before = _tensors_alive()
    model = _outline(config)
    with mode or nullcontext():
        _give_memory(model, device)
    _require_none_elsewhere(model, before)
    with mode or nullcontext():
        return as_configured(config, model)


def reason_against(config: TrainConfig, model: nn.Module) -> str | None:
    """Why other ranks cannot make `model` without values: it fails, or what `hollow_model` leaves would differ."""
    for name, one in model.named_parameters():
        if one._backward_hooks or getattr(one, "_post_accumulate_grad_hooks", None):
            return f"{name} has a hook"
    shared = Counter(one.untyped_storage().data_ptr() for one in model.buffers() if one.numel())
    if max(shared.values(), default=1) > 1:
        return "two of its buffers share memory"
    try:
        hollow = hollow_model(config, torch.device("meta"))
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    ours, theirs = dict(_features(model)), dict(_features(hollow))
    if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        return f"{differing[0]} depends on values"
    return None


def take_weights(runtime: Runtime, model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, those that no checkpoint holds too. Every rank calls it."""
    with torch.no_grad():
        for one in chain(model.parameters(), model.buffers()):
            values = of_rank0(runtime, one)
            if values is not one:
                one.copy_(values)


def draw_weights(runtime: Runtime, config: TrainConfig, seed: int, dataset: Any, module: nn.Module) -> None:
    """Give a module the weights that a run of `seed` starts from, on every rank. Every rank calls it.

    Rank 0 alone makes them, if they are large or read from a file; see `initial_model` for the arguments.
    """
    is_read, is_large = weights_of(config.model) is not None, weight_bytes(module) >= SENT_FROM_BYTES
    sends = runtime.world_size > 1 and (is_read or is_large)
    if runtime.is_main or not sends:
        model = initial_model(config, seed, dataset)
        load_start_weights(config, model)
        module.load_state_dict(model.state_dict())
    if sends:
        take_weights(runtime, module)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(one.nbytes for one in module.parameters())


def _outline(config: TrainConfig) -> nn.Module:
    try:
        with torch.device("meta"), Undrawn():
            model = made_model(config, config.seed)
    except Exception as error:
        raise NotHollowError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if any(is_lazy(one) for one in chain(model.parameters(), model.buffers())):
        raise NotHollowError("its lazy modules take their shapes from a sample")
    train_mode(model)
    return model


def _require_none_elsewhere(model: nn.Module, before: dict[int, Tensor]) -> None:
    """Refuse tensors without values that are neither its parameters nor its buffers, or were one until just now."""
    known = before.keys() | {*map(id, chain(model.parameters(), model.buffers()))}
    # In attributes, closures, globals, objects of any kind: no search from the model on would find all of them.
    if others := [one for key, one in _tensors_alive().items() if one.is_meta and key not in known]:
        raise NotHollowError(
            f"it keeps a tensor of {list(others[0].shape)} outside of its parameters and buffers. Make it one of its "
            "buffers, with persistent=False if checkpoints need not hold it"
        )


def _tensors_alive() -> dict[int, Tensor]:
    gc.collect()
    return {id(one): one for one in gc.get_objects() if issubclass(type(one), Tensor)}


def _give_memory(model: nn.Module, device: torch.device) -> None:
    """Replace its parameters and buffers by others on `device`; tied ones stay tied."""
    kept: dict[Tensor, Tensor] = {}
    for owner in model.modules():
        for members in (owner._parameters, owner._buffers):
            for name, one in list(members.items()):
                if one is None:
                    continue
                if one not in kept:
                    kept[one] = _with_memory(one, device)
                setattr(owner, name, kept[one])  # as recurrent layers keep a list of theirs by it


def _with_memory(tensor: Tensor, device: torch.device) -> Tensor:
    memory = torch.empty_like(tensor, device=device)
    if not isinstance(tensor, nn.Parameter):
        return memory
    parameter = nn.Parameter(memory, requires_grad=tensor.requires_grad)
    parameter.__dict__.update(tensor.__dict__)
    return parameter


def _features(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All that a model has besides the values of its parameters and buffers, under names."""
    members = dict(chain(_every(model.named_parameters), _every(model.named_buffers)))
    names = {id(one): name for name, one in members.items()}
    for name, one in members.items():
        yield name, (type(one).__name__, one.shape, one.dtype, one.stride(), one.requires_grad)
    for path, part in model.named_modules():
        yield path or "the model", f"{type(part).__module__}.{type(part).__qualname__}"
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                value = list(value.values()) if name.endswith("_hooks") else value  # whose keys count all hooks made
                yield f"{path}.{name}".lstrip("."), _plain(value, names)


def _every(named: Any) -> Iterator[tuple[str, Tensor]]:
    yield from named(remove_duplicate=False)


def _plain(value: Any, members: dict[int, str]) -> Any:
    """A value as something to compare: numbers and texts as they are, tensors by their bytes, others by type."""
    if isinstance(value, Tensor):
        if id(value) in members:
            return members[id(value)]
        if value.is_meta:
            return object()  # has no values, so is equal to nothing
        return tensors_sha256([("", value)])
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
    if isinstance(value, (list, tuple, deque)):
        return [_plain(one, members) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one, members) for name, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return repr(value) if isinstance(value, (int, float, complex, str, bytes, type(None))) else type(value).__name__

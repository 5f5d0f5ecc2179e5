"""Weights that rank 0 makes and sends: a large model is made once in a job, not by each rank in its host's memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.checksums import tensors_sha256
from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.models.modes import train_mode
from largebatch.run.checks.memory import Undrawn
from largebatch.run.config.schema import TrainConfig
from largebatch.run.initial_state import as_configured, initial_model, made_model

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
    model = _outline(config)
    kept: dict[Tensor, Tensor] = {}  # tied tensors stay tied
    with mode or nullcontext():
        for owner in model.modules():
            for members in (owner._parameters, owner._buffers):
                for name, one in members.items():
                    if one is not None and one not in kept:
                        kept[one] = _with_memory(one, device)
                    members[name] = None if one is None else kept[one]  # type: ignore[assignment]
        return as_configured(config, model)


def reason_against(config: TrainConfig, model: nn.Module) -> str | None:
    """Why other ranks cannot make `model` without values: it fails, or what is no tensor would differ."""
    try:
        outline = as_configured(config, _outline(config))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    ours, theirs = dict(_features(model)), dict(_features(outline))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return f"{differing[0]} depends on values" if differing else None


def take_weights(runtime: Runtime, model: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0, those that no checkpoint holds too. Every rank calls it."""
    with torch.no_grad():
        for one in chain(model.parameters(), model.buffers()):
            values = of_rank0(runtime, one)
            if values is not one:
                one.copy_(values)


def draw_weights(runtime: Runtime, config: TrainConfig, seed: int, dataset: Any, module: nn.Module) -> None:
    """Give a module the weights that a run of `seed` starts from, on every rank. Every rank calls it.

    Rank 0 alone makes them, if they are large; see `initial_model` for the arguments.
    """
    sends = runtime.world_size > 1 and weight_bytes(module) >= SENT_FROM_BYTES
    if runtime.is_main or not sends:
        module.load_state_dict(initial_model(config, seed, dataset).state_dict())
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
    train_mode(model)
    return model


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
    for name, one in members.items():
        yield name, (type(one).__name__, one.shape, one.dtype, one.stride(), one.requires_grad)
    for path, part in model.named_modules():
        yield path or "the model", f"{type(part).__module__}.{type(part).__qualname__}"
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield f"{path}.{name}".lstrip("."), _plain(value, {*map(id, members.values())})


def _every(named: Any) -> Iterator[tuple[str, Tensor]]:
    yield from named(remove_duplicate=False)


def _plain(value: Any, members: set[int]) -> Any:
    """A value as something to compare: numbers and texts as they are, tensors by their bytes, others by type."""
    if isinstance(value, Tensor):
        if value.is_meta or id(value) in members:
            return object()  # is equal to nothing: it has no values, or is a second way to a weight that is replaced
        return tensors_sha256([("", value)])
    if isinstance(value, (list, tuple, deque)):
        return [_plain(one, members) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one, members) for name, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return repr(value) if isinstance(value, (int, float, complex, str, bytes, type(None))) else type(value).__name__

"""Optimizer state at full precision: dtype, batching of tensors, loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

PLAIN_TYPES = (Tensor, torch.nn.Parameter, FakeTensor)
"""Types with nothing of their own: a fake tensor takes the path of the one that it stands for."""

MAX_BUNCH_NUMEL = 2**23
"""Elements of a batch of tensors: 32 MiB of float32, which takes many times longer than the launch of a kernel."""


def params_and_grads(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The group's parameters that have a gradient, in order, and their gradients.

    Raises:
        RuntimeError: if a gradient is sparse.
    """
    params, grads = [], []
    for param in group["params"]:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            raise RuntimeError(
                f"A parameter of shape {list(param.shape)} has a sparse gradient: a trust ratio needs the norm of the "
                "dense gradient. Build its torch.nn.Embedding with sparse=False, or give it to torch.optim.SparseAdam."
            )
        params.append(param)
        grads.append(param.grad)
    return params, grads


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own dtype if that is wider: the dtype of its state and of all arithmetic on it."""
    return torch.promote_types(tensor.dtype, torch.float32)


def wide_zeros(param: Tensor) -> Tensor:
    """Zeros in the layout of `param` and its wide dtype."""
    return torch.zeros_like(param, dtype=wide_dtype(param), memory_format=torch.preserve_format)


def widened(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors in `dtype`: copies where it is wider than theirs, the very same tensors where it is theirs."""
    return [tensor.to(dtype) for tensor in tensors]


def uses_foreach(foreach: bool | None, params: Sequence[Tensor]) -> bool:
    """Whether to take the foreach path; None: if no parameter is a tensor subclass such as DTensor."""
    if foreach is not None:
        return foreach
    return all(type(param) in PLAIN_TYPES for param in params)


def same_kind(*columns: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Split parallel lists into bunches in which the tensors of the first list share a device and a dtype.

    A bunch has up to MAX_BUNCH_NUMEL elements, or a single larger tensor, so that temporary memory does not grow with
    the model.
    """
    bunches: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
    numels: dict[tuple[torch.device, torch.dtype], int] = {}
    for row in zip(*columns, strict=True):
        kind = (row[0].device, row[0].dtype)
        numels[kind] = numels.get(kind, 0) + row[0].numel()
        if kind in bunches and numels[kind] > MAX_BUNCH_NUMEL:
            yield _columns(bunches.pop(kind))
            numels[kind] = row[0].numel()
        bunches.setdefault(kind, []).append(row)
    for bunch in bunches.values():
        yield _columns(bunch)


def _columns(rows: Sequence[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*rows, strict=True)]


def load_unrounded(optimizer: Optimizer, load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any]) -> None:
    """Call `load`, torch's own `load_state_dict`, and keep the precision of state that is wider than its parameter.

    torch casts all state but "step" to the dtype of the parameter: a bfloat16 model would lose 16 bits of its momentum
    at every resume. Unlike torch, the optimizer also gets memory of its own for the state.
    """
    given: dict[str, Any] = {}

    def remember(_: Optimizer, final: dict[str, Any]) -> None:
        given.update(final)

    def restore(loaded: Optimizer) -> None:
        _copy_state(loaded, given)

    # Registered last and first: between them stand torch's casts alone, and every hook of the user's still counts.
    handles = [
        optimizer.register_load_state_dict_pre_hook(remember),
        optimizer.register_load_state_dict_post_hook(restore, prepend=True),
    ]
    try:
        load(state_dict)
    finally:
        for handle in handles:
            handle.remove()


def _copy_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for key, param in zip(keys, params, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            # A step counter stays on the CPU: reading it there does not wait for the device.
            device, dtype = ("cpu", torch.float32) if name == "step" else (param.device, wide_dtype(param))
            optimizer.state[param][name] = value.detach().to(device=device, dtype=dtype, copy=True)

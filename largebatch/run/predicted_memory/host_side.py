"""What stays real beside fake tensors: numbers of the host, and of torch's own bookkeeping."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_PACKAGE = str(Path(__file__).resolve().parents[2])
_TORCH = str(Path(torch.__file__).resolve().parent)
_PRIVATE = (f"{_TORCH}/_", f"{_TORCH}/utils/", __file__)
_DDP = {
    f"{_TORCH}/nn/parallel/distributed.py",
    f"{_TORCH}/distributed/utils.py",
    f"{_PACKAGE}/gradient/bucket_views.py",
}
# Code that works the same whatever it reads, such as a sum over ranks that says how the run stands.
_INDIFFERENT = tuple(f"{_PACKAGE}/{room}/" for room in ("gradient", "distributed", "training", "optim"))
_INDIFFERENT += (f"{_TORCH}/optim/",)

_MKLDNN_LSTM = torch.ops.aten.mkldnn_rnn_layer.default


class ValueReadError(RuntimeError):
    """A model, a loss or an optimizer asks for the value of a fake tensor, which has none."""


class HostSide(TorchDispatchMode):
    """Inside, operations on real tensors alone stay real, and those who may read values of fake tensors get some.

    Others that read a value get an error: what they do next would depend on it.

    Attributes:
        reads_anything: whether everybody gets values: while the optimizer steps, no memory depends on them.
    """

    reads_anything = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if not any(isinstance(one, FakeTensor) for one in tensors) and (tensors or self._counts_for_ddp(kwargs)):
            with _disable_current_modes():
                return func(*args, **kwargs)
        try:
            result = func(*args, **kwargs)
            return (*result[:3], self._workspace(args)) if func is _MKLDNN_LSTM else result
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
        if self.reads_anything:
            return _number(1, args[0])
        if _reader().f_code.co_filename.startswith(_INDIFFERENT):
            return _number(0, args[0])
        raise ValueReadError("it reads the value of a tensor") from None

    def _workspace(self, args: Any) -> Tensor | None:
        """What oneDNN's LSTM keeps for its backward pass; only a run of the layer tells how much."""
        with _disable_current_modes():
            numbers = [torch.zeros(one.shape, dtype=one.dtype) if isinstance(one, Tensor) else one for one in args]
            kept = _MKLDNN_LSTM(*numbers)[3]
        return None if kept is None else torch.empty(kept.shape, dtype=kept.dtype)

    @staticmethod
    def _counts_for_ddp(kwargs: dict[str, Any]) -> bool:
        """Whether DDP makes a tensor to compare sizes, or the order of its buckets, between ranks."""
        dtype = kwargs.get("dtype")
        is_count = dtype is not None and not dtype.is_floating_point
        return is_count and _reader().f_code.co_filename in _DDP


def _number(value: int, like: Tensor) -> Any:
    if like.dtype == torch.bool:
        return bool(value)
    return float(value) if like.is_floating_point() else value


def _reader() -> FrameType:
    """The innermost frame outside of torch's machinery."""
    frames = _frames(sys._getframe(1))
    return next((one for one in frames if not one.f_code.co_filename.startswith(_PRIVATE)), sys._getframe(1))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back

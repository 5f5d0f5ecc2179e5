"""The bytes of all tensors that are alive, operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA_GRANULE = 512
"""Bytes to which torch's allocator on a GPU rounds up each tensor."""


class _Known(NamedTuple):
    storage: Any
    num_bytes: int
    born: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it, real or fake, until they are freed.

    Memory that an operation takes and gives back by itself, such as a kernel's workspace, is not seen.

    Args:
        granule: bytes to which each storage is rounded up.

    Attributes:
        live: bytes that are alive.
        peak: the most of them since `restart`.
        peak_operation: what reached it, such as "aten.mm".
        limit: bytes of a device of which this is all the memory; None: there is no limit. It is lifted when it was
            exceeded once, so that what tidies up behind the error is not refused, too.

    Raises:
        OutOfMemoryError: torch's, from the operation that exceeds the limit.

    >>> with LiveBytes() as memory:
    ...     total = (torch.ones(10) + torch.ones(10)).sum()
    >>> memory.live, memory.peak, memory.peak_operation
    (4, 120, 'aten.add')
    """

    def __init__(self, *, granule: int = 1) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.peak_operation = ""
        self.limit: int | None = None
        self._granule = granule
        self._known: dict[int, _Known] = {}
        self._num_born = self._num_born_at_peak = 0

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.peak_operation, self._num_born_at_peak = self.live, "", self._num_born

    def watch(self, tensors: Iterable[Any], operation: str = "") -> None:
        """Count tensors that were made outside, or by `operation`; those that are counted already, and others, pass."""
        for one in tensors:
            if isinstance(one, Tensor) and one.layout == torch.strided:
                self._watch(one, operation)

    def bytes_of(self, tensors: Iterable[Tensor], *, at_peak: bool = False) -> int:
        """Bytes of these tensors, a shared storage once; `at_peak`: of those that were alive then."""
        keys = {one.untyped_storage()._cdata for one in tensors}
        known = [self._known[key] for key in keys if key in self._known]
        return sum(one.num_bytes for one in known if not at_peak or one.born <= self._num_born_at_peak)

    def _watch(self, tensor: Tensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        num_bytes = -(-storage.nbytes() // self._granule) * self._granule
        self._num_born += 1
        # A storage keeps its Python object as long as it lives itself.
        self._known[key] = _Known(weakref.ref(storage, lambda _: self._free(key)), num_bytes, self._num_born)
        self.live += num_bytes
        if self.live > self.peak:
            self.peak, self.peak_operation, self._num_born_at_peak = self.live, operation, self._num_born
        if self.limit is not None and self.live > self.limit:
            limit, self.limit = self.limit, None
            raise torch.OutOfMemoryError(f"out of memory. {operation}: {self.live:,} bytes, of {limit:,}.")

    def _free(self, key: int) -> None:
        self.live -= self._known.pop(key).num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(tree_leaves(result), str(func.overloadpacket))
        return result

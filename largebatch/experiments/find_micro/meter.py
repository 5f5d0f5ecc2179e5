"""The bytes of tensors of a rank: those that torch allocates on a GPU, and on a CPU those of each operation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from largebatch.diagnostics.memory.live_bytes import LiveBytes


class Meter(Protocol):
    """Measures the memory of a rank.

    Attributes:
        limit: bytes of tensors that it may have.
    """

    limit: int

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""

    def restart(self) -> None:
        """Look for the peak from here on."""

    def peak(self) -> int:
        """The most bytes since then."""

    def counting(self, *, limits: bool = False) -> contextlib.AbstractContextManager[None]:
        """Inside tensors are counted; `limits`: and the one that exceeds the limit is refused, where that is possible.

        A limit that is exceeded elsewhere shows in the peak.
        """

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Inside samples are loaded, and nothing is refused: the passes are what may not fit."""


class CountedTensors:
    """Of a CPU: counts operation by operation, which takes time, so that it is left out of timed steps.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self._bytes = limit, LiveBytes()

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """See `Meter`."""
        self._bytes.watch(tensors)

    def restart(self) -> None:
        """See `Meter`."""
        self._bytes.restart()

    def peak(self) -> int:
        """See `Meter`."""
        return self._bytes.peak

    @contextlib.contextmanager
    def counting(self, *, limits: bool = False) -> Iterator[None]:
        """See `Meter`."""
        self._bytes.limit = self.limit if limits else None
        try:
            with self._bytes:
                yield
        finally:
            self._bytes.limit = None

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """See `Meter`."""
        limit, self._bytes.limit = self._bytes.limit, None
        try:
            yield
        finally:
            self._bytes.limit = limit


class AllocatedOnGPU:
    """Of a GPU: what torch's allocator has handed out.

    Args:
        device: the GPU.
        limit: bytes; None: those that are free, or that torch holds.
        headroom: share of them that stays free.
    """

    def __init__(self, device: torch.device, limit: int | None, *, headroom: float) -> None:
        self._device = device
        if limit is None:
            free, _ = torch.cuda.mem_get_info(device)
            limit = free + torch.cuda.memory_reserved(device)
        self.limit = int(limit * (1 - headroom))

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """See `Meter`; they are counted already."""

    def restart(self) -> None:
        """See `Meter`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """See `Meter`."""
        return torch.cuda.max_memory_allocated(self._device)

    def counting(self, *, limits: bool = False) -> contextlib.AbstractContextManager[None]:
        """See `Meter`; the GPU itself refuses what it has no room for."""
        return contextlib.nullcontext()

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """See `Meter`; samples lie on the host."""
        return contextlib.nullcontext()

"""Moments in the work of a device, and the seconds between them."""

from __future__ import annotations

import time
from typing import Any

import torch


class StreamClock:
    """A clock whose moments on a GPU are events on its stream: to take one waits for nothing.

    A moment is read with `seconds` once the GPU has come to it: after its `synchronize()`, or when `query()` is true.

    Args:
        device: that computes.

    Attributes:
        on_gpu: whether moments are events; else they are seconds of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._device = device

    def now(self) -> Any:
        """The moment at which everything that was launched so far is done."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """From one moment to a later one."""
        return float(start.elapsed_time(end)) / 1000 if self.on_gpu else float(end - start)

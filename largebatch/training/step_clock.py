"""How long steps take, observers left out."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from largebatch.distributed.stream_clock import StreamClock
from largebatch.training.progress import Progress


class StepClock:
    """Adds the time of each step to `Progress.train_s`.

    To the host, a step on a GPU is over when it is launched, maybe long before it is computed. So its time lies between
    two events on the GPU's stream, and is added once the GPU has come to the second one.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = StreamClock(device)
        self._begun: Any = None
        self._launched: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """A step begins."""
        self._begun = self._clock.now()

    def end(self, progress: Progress, *, waits: bool) -> None:
        """The step ends.

        Args:
            progress: of the run.
            waits: whether all its time is to be known now, because the GPU has just been waited for.
        """
        self._launched.append((self._begun, self._clock.now()))
        self.settle(progress, waits=waits)

    def settle(self, progress: Progress, *, waits: bool = True) -> None:
        """Add the steps that are done by now, or wait for all."""
        if waits and self._clock.on_gpu and self._launched:
            self._launched[-1][1].synchronize()
        while self._launched and (not self._clock.on_gpu or self._launched[0][1].query()):
            begun, ended = self._launched.popleft()
            progress.train_s += self._clock.seconds(begun, ended)
            progress.timed_steps += 1

"""A model whose last rank raises, hangs or is killed in its fourth forward pass in training."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from torch import Tensor, nn


class LateRank(nn.Sequential):
    """A classifier of 64 features that does `what` to the last rank: raise, hang or kill."""

    def __init__(self, what: str) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self._what, self._passes = what, 0

    def forward(self, inputs: Tensor) -> Any:
        """The logits, a few times."""
        self._passes += self.training
        is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if self._passes > 3 and is_last:
            if self._what == "raise":
                raise ArithmeticError("planted")
            if self._what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().forward(inputs)

"""Delays of known length for a real run: in every all-reduce of the gradient, and in loading each sample."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.gradient import reductions
from largebatch.training.loop import Observer, Run


class DelayedAllReduce(Observer):
    """Waits before every all-reduce of a part of the gradient, on every rank, until the process ends.

    Args:
        seconds: of each wait. A model of less than precision.bucket_mb sends its gradient in one part.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_start(self, run: Run) -> None:
        """Plant it."""
        all_reduce = reductions._ALL_REDUCES["none"]

        def delayed(group: Any, bucket: Any) -> Any:
            time.sleep(self.seconds)
            return all_reduce(group, bucket)

        reductions._ALL_REDUCES["none"] = delayed


class SlowlyLoaded(Dataset[tuple[Tensor, int]]):
    """1,437 samples of 64 features and 10 classes, as the digits are shaped, each of which takes a while to load.

    Args:
        seconds: per sample.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 1437

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:  # a sleep of a millisecond may be two, and the delay would not be known
            pass
        return torch.linspace(0, 1, 64) * (place % 7), place % 10

"""A data set that draws random numbers, as somebody's own would: its items are made in loading processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


class NoisyPairs(Dataset[tuple[Tensor, int]]):
    """Two classes, whose features are drawn anew every time that an item is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(8) + index % 2, index % 2

"""A data set that draws random numbers, as somebody's own would: its items are made in loading processes. A model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class NoisyPairs(Dataset[tuple[Tensor, int]]):
    """Two classes, whose features are drawn anew every time that an item is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(8) + index % 2, index % 2


class Normed(nn.Sequential):
    """An MLP with batch norms and dropout: evaluations read statistics of which each rank has some."""

    def __init__(self, in_features: int, num_classes: int, hidden: list[int], dropout: float = 0.0) -> None:
        (width,) = hidden
        super().__init__(
            nn.Flatten(), nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.BatchNorm1d(width, momentum=None), nn.Linear(width, num_classes),
        )  # fmt: skip

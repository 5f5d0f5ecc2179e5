"""Data sets such as somebody's own, whose items are made in loading processes, and models."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info


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


class Ordered(Dataset[tuple[Tensor, int]]):
    """Two classes, always the same samples, until a file in the folder `orders` orders something else.

    Orders: `bad` (no sample can be read), `nan`, `slow_build`, `slow` (in loading processes). A file `at_...` answers
    that it has come to what takes long.
    """

    def __init__(self, count: int, orders: str) -> None:
        self._count = count
        self._orders = Path(orders)
        if self._is("slow_build"):
            self._tell_and_wait("at_build", 30.0)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._is("bad"):
            raise KeyError("no such file")
        if self._is("nan"):
            return torch.full((8,), torch.nan), index % 2
        if self._is("slow") and get_worker_info() is not None:
            self._tell_and_wait("at_load", 0.3)
        return torch.arange(8.0) / 8 + index % 2, index % 2

    def _is(self, order: str) -> bool:
        return (self._orders / order).exists()

    def _tell_and_wait(self, answer: str, seconds: float) -> None:
        (self._orders / answer).touch()
        time.sleep(seconds)


class OrderedNet(nn.Module):
    """A linear model that raises an error in the last rank, when a file `raise` orders it."""

    def __init__(self, in_features: int, num_classes: int, orders: str) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)
        self._order = Path(orders, "raise")

    def forward(self, inputs: Tensor) -> Tensor:
        is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if is_last and self._order.exists():
            raise ValueError("ordered")
        return self.linear(inputs)  # type: ignore[no-any-return]


def ordered(orders: Path) -> tuple[str, ...]:
    """The group of digits made into `Ordered` sets; orders to the validation set are in the folder `evaluation`."""
    return (
        "model._target_=tests.faults.own_data.OrderedNet", "~model.hidden", "~model.dropout", f"+model.orders={orders}",
        "data.name=own", "data.limit=null", "data.augment.crop_padding=0", "data.num_features=8", "data.num_classes=2",
        "data.train._target_=tests.faults.own_data.Ordered", "~data.train.split", "+data.train.count=120",
        f"+data.train.orders={orders}",
        "data.validation._target_=tests.faults.own_data.Ordered", "~data.validation.split", "+data.validation.count=16",
        f"+data.validation.orders={orders / 'evaluation'}",
    )  # fmt: skip

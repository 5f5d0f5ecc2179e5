"""A part of a data set."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class FirstSamples(Dataset[Any]):
    """The first `count` samples of `dataset`; in memory if that is.

    Raises ValueError if there are fewer.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        if not 1 <= count <= len(dataset):
            raise ValueError(f"{count} samples of a set of {len(dataset)}: choose from 1 to {len(dataset)}.")
        self._dataset = dataset
        self._count = count
        if hasattr(dataset, "fetch"):
            self.fetch = dataset.fetch
        if hasattr(dataset, "label_range"):
            self.label_range = dataset.label_range

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

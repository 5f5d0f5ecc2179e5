"""Subsets of a data set, and a data set in memory as a map-style one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.stored import stored_form


class FirstSamples(Dataset[Any]):
    """The first `count` samples of `dataset`; in memory if `dataset` is.

    Raises ValueError if `dataset` has fewer.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        if not 1 <= count <= len(dataset):
            raise ValueError(f"{count} samples of a set of {len(dataset)}: choose from 1 to {len(dataset)}.")
        self._dataset = dataset
        self._count = count
        if hasattr(dataset, "fetch"):
            self.fetch = dataset.fetch
        if isinstance(getattr(dataset, "targets", None), Tensor):
            self.targets = dataset.targets[:count]
        if hasattr(dataset, "label_range"):
            self.label_range = dataset.label_range

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored, complete = stored_form(self._dataset)
        return FirstSamples(stored, self._count), complete

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def innermost(dataset: Any) -> Any:
    """The user's data set, without the wrappers of this package."""
    while type(dataset).__module__.startswith("largebatch.data."):
        inner = getattr(dataset, "_dataset", getattr(dataset, "clean", None))
        if inner is None:
            break
        dataset = inner
    return dataset


def spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly spread, including the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})


class OneByOne(Dataset[Any]):
    """A data set in memory as a map-style one: each sample is a `fetch` of its id alone."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        inputs, targets = self._dataset.fetch(np.array([index]))
        return ({key: part[0] for key, part in inputs.items()} if isinstance(inputs, dict) else inputs[0]), targets[0]

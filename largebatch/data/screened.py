"""A data set whose unusable samples raise an error when they are fetched."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.samples import Screen, as_sample


class ScreenedSamples(Dataset[Any]):
    """`dataset` behind a `Screen`; in memory if `dataset` is.

    Fetching a sample that fails the screen raises BadSampleError.
    """

    def __init__(self, dataset: Any, screen: Screen) -> None:
        self._dataset = dataset
        self._screen = screen
        if hasattr(dataset, "fetch"):
            self.fetch = self._fetch
        if hasattr(dataset, "clean"):
            self.clean = dataset.clean

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest label; None if they are not known."""
        return getattr(self._dataset, "label_range", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        sample = as_sample(self._dataset[index])
        self._screen.require_good(sample)
        return sample

    def _fetch(self, ids: Int64Array) -> tuple[Any, Any]:
        inputs, targets = self._dataset.fetch(ids)
        self._screen.require_numbers(inputs, targets)
        return inputs, targets

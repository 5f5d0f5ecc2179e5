"""A data set whose unusable samples raise an error when they are fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.samples import Screen, as_sample
from largebatch.data.stored import stored_form

_IMAGE_DIMS = 3  # or more: several views


class ScreenedSamples(Dataset[Any]):
    """`dataset` behind a `Screen`; in memory if `dataset` is.

    Fetching a sample that fails the screen raises BadSampleError.

    Args:
        dataset: map-style, or in memory.
        screen: what samples must meet as the model takes them.
        complete: makes such of those of `dataset`, see `stored_form`; None: they are complete.
    """

    def __init__(self, dataset: Any, screen: Screen, *, complete: Callable[[Tensor], Tensor] | None = None) -> None:
        self._dataset, self._screen, self._complete = dataset, screen, complete
        if hasattr(dataset, "fetch"):
            self.fetch = self._fetch
        if hasattr(dataset, "clean"):
            self.clean = dataset.clean

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest label; None if they are not known."""
        return getattr(self._dataset, "label_range", None)

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored, complete = stored_form(self._dataset)
        return ScreenedSamples(stored, self._screen, complete=complete), complete

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        sample = as_sample(self._dataset[index])
        self._screen.require_good(sample if self._complete is None else _completed(sample, self._complete))
        return sample

    def _fetch(self, ids: Int64Array) -> tuple[Any, Any]:
        inputs, targets = self._dataset.fetch(ids)
        self._screen.require_numbers(inputs, targets)
        return inputs, targets


def _completed(item: Any, complete: Callable[[Tensor], Tensor]) -> Any:
    """A sample, or a part of it, with its image as the model takes it."""
    if isinstance(item, tuple):
        inputs, target = item
        return _completed(inputs, complete), target
    if isinstance(item, dict):
        return {name: _completed(part, complete) for name, part in item.items()}
    return complete(item[None])[0] if isinstance(item, Tensor) and item.dim() >= _IMAGE_DIMS else item

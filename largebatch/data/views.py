"""Several views of each sample, for contrastive losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError
from largebatch.data.samples import as_sample
from largebatch.data.stored import stored_form
from largebatch.data.transforms import with_input


class SeveralViews(Dataset[Any]):
    """`dataset`, each sample of which is loaded `count` times: inputs [count, ...].

    Random changes of the data set's items draw anew for each view, from generators that a loader seeds once for the
    sample. A set in memory draws nothing: its views are equal, until `Augmentation` with `views` changes them.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        self._dataset, self._count = dataset, count
        if hasattr(dataset, "fetch"):
            self.fetch = self._fetch

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest label; None if they are not known."""
        return getattr(self._dataset, "label_range", None)

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored, complete = stored_form(self._dataset)
        return SeveralViews(stored, self._count), complete

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        views: list[Tensor] = []

        def keep(view: Tensor) -> Tensor:
            views.append(view)
            return view

        samples = [with_input(as_sample(self._dataset[index]), keep) for _ in range(self._count)]
        return with_input(samples[0], lambda _: torch.stack(views))

    def _fetch(self, ids: Int64Array) -> tuple[Tensor, Tensor]:
        inputs, targets = self._dataset.fetch(ids)
        if not isinstance(inputs, Tensor):
            raise DataError(
                f"data.augment.views: the inputs {', '.join(inputs)} are several, and views need one. Set it to 1."
            )
        return inputs[:, None].expand(-1, self._count, *inputs.shape[1:]).contiguous(), targets

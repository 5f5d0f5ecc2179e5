"""A micro-batch: its request, and its loaded data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from largebatch.data.array import Int64Array
from largebatch.data.items import Inputs, SampleRequest, Skipped


@dataclass(frozen=True)
class Request:
    """A micro-batch to load; see `MicroBatchData` for the fields."""

    ids: Int64Array
    epochs: Int64Array
    index: int
    samples_seen: int

    @property
    def pairs(self) -> list[SampleRequest]:
        """(epoch, id) of each sample."""
        return list(zip(self.epochs.tolist(), self.ids.tolist(), strict=True))

    def filled(self, inputs: Inputs, targets: Tensor, skipped: Sequence[Skipped] = ()) -> MicroBatchData:
        """The loaded data of this request, without the skipped samples."""
        ids, epochs = self.ids, self.epochs
        if skipped:
            places = [place for place, _ in skipped]
            ids, epochs = np.delete(ids, places), np.delete(epochs, places)
        return MicroBatchData(inputs, targets, ids, epochs, self.index, self.samples_seen, self.ids, tuple(skipped))


@dataclass(frozen=True)
class MicroBatchData:
    """One micro-batch.

    Attributes:
        inputs: Tensor [n, ...], or a dict of tensors.
        targets: Tensor [n, ...].
        ids: sample ids, int64 [n].
        epochs: epoch of each sample, int64 [n]; a batch may span two.
        index: number of the micro-batch within its global batch.
        samples_seen: position at which the global batch starts: the samples consumed by all earlier steps.
        asked: the requested ids, int64 [n + skipped].
        skipped: (index in `asked`, reason) of each skipped sample.
    """

    inputs: Inputs
    targets: Tensor
    ids: Int64Array
    epochs: Int64Array
    index: int
    samples_seen: int
    asked: Int64Array
    skipped: tuple[Skipped, ...]

    @property
    def is_placeholder(self) -> bool:
        """Whether no requested sample could be loaded, so that another sample stands in."""
        return len(self.ids) == 0

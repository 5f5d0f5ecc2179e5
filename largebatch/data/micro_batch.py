"""A micro-batch: its request, and its loaded data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from largebatch.batch.orders import Order
from largebatch.batch.plan import BatchPlan, MicroBatch
from largebatch.batch.ramp import BatchRamp
from largebatch.data.array import Int64Array
from largebatch.data.items import Inputs, SampleRequest, Skipped

_IDS_AT_ONCE = 4096


@dataclass(frozen=True)
class Request:
    """A micro-batch to load; see `MicroBatchData` for the fields.

    Attributes:
        partners: row of the partner of each sample among `ids`, int64 [n], where samples are mixed in pairs. Behind the
            n samples, `ids` then has partners that are not among them, 2 at most.
    """

    ids: Int64Array
    epochs: Int64Array
    index: int
    samples_seen: int
    partners: Int64Array | None = None

    @property
    def size(self) -> int:
        """Samples of the micro-batch, without partners from elsewhere."""
        return len(self.ids) if self.partners is None else len(self.partners)

    @property
    def pairs(self) -> list[SampleRequest]:
        """(epoch, id) of each sample."""
        return list(zip(self.epochs.tolist(), self.ids.tolist(), strict=True))

    def filled(self, inputs: Inputs, targets: Tensor, skipped: Sequence[Skipped] = ()) -> MicroBatchData:
        """The loaded data of this request, without the skipped samples; partners from elsewhere are still among them.

        These are reported as skipped where they belong.
        """
        asked, epochs = self.ids[: self.size], self.epochs[: self.size]
        own, ids = tuple(one for one in skipped if one[0] < self.size), asked
        if own:
            places = [place for place, _ in own]
            ids, epochs = np.delete(ids, places), np.delete(epochs, places)
        return MicroBatchData(inputs, targets, ids, epochs, self.index, self.samples_seen, asked, own)

    def loaded(self, skipped: Sequence[Skipped]) -> tuple[Int64Array, Int64Array]:
        """Ids and epochs of all samples that were loaded."""
        places = [place for place, _ in skipped]
        return np.delete(self.ids, places), np.delete(self.epochs, places)

    def pairs_of_rows(self, skipped: Sequence[Skipped]) -> Int64Array:
        """Row of each sample of the micro-batch, and of its partner, among those that were loaded, int64 [2, n].

        A sample without a partner is its own. If no sample could be loaded, the first row stands in.
        """
        assert self.partners is not None
        is_loaded = np.ones(len(self.ids), dtype=np.bool_)
        is_loaded[[place for place, _ in skipped]] = False
        own = np.flatnonzero(is_loaded[: self.size])
        if not len(own):
            return np.zeros((2, 1), dtype=np.int64)
        partners = self.partners[own]
        rows: Int64Array = (np.cumsum(is_loaded) - 1)[np.stack([own, np.where(is_loaded[partners], partners, own)])]
        return rows


def with_partners(positions: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Positions [n + 0 to 2] with those of partners from elsewhere behind, and the row of each partner, [n].

    The partner of position p is p XOR 1.

    Args:
        positions: consecutive, int64 [n].

    >>> with_partners(np.arange(3, 6))
    (array([3, 4, 5, 2]), array([3, 2, 1]))
    """
    rows = (positions ^ 1) - positions[0]
    is_before, is_behind = rows < 0, rows >= len(positions)
    rows[is_behind] = len(positions) + is_before.sum()
    rows[is_before] = len(positions)
    others = (positions ^ 1)[is_before | is_behind]
    return np.concatenate([positions, others]), rows


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


def requests_of_rank(
    order: Order, ramp: BatchRamp, rank: int, samples_seen: int, num_steps: int, *, pairs: bool = False
) -> Iterator[Request]:
    """The micro-batches of `rank` in `num_steps` steps, the first of which starts at position `samples_seen`.

    With `pairs` each has its partners, too.
    """
    places = _places(ramp, rank, samples_seen, num_steps)
    # Thousands of ids cost about as much as one: compute those of many micro-batches at once.
    first_size = ramp.at(samples_seen).micro_batches(rank)[0].size
    at_once = max(1, _IDS_AT_ONCE // first_size)
    while block := list(itertools.islice(places, at_once)):
        positions: list[Int64Array] = [
            np.arange(position + part.offset, position + part.offset + part.size) for position, part in block
        ]
        partners: list[Int64Array | None] = [None] * len(positions)
        if pairs:
            positions, partners = (list(one) for one in zip(*map(with_partners, positions), strict=True))
        ends = np.cumsum([len(one) for one in positions])[:-1]
        ids = np.split(order.ids_at(np.concatenate(positions)), ends)
        for (position, part), own_ids, own, others in zip(block, ids, positions, partners, strict=True):
            yield Request(own_ids, order.draws_at(own), part.index, position, others)


def _places(ramp: BatchRamp, rank: int, samples_seen: int, num_steps: int) -> Iterator[tuple[int, MicroBatch]]:
    """(samples consumed before the step, micro-batch) for each micro-batch of `rank`."""
    plan: BatchPlan | None = None
    own: tuple[MicroBatch, ...] = ()
    for position, next_plan in ramp.steps(samples_seen, num_steps):
        if next_plan is not plan:
            plan, own = next_plan, next_plan.micro_batches(rank)
        for part in own:
            yield position, part

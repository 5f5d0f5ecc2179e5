"""The order of a run as samplers of torch's DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data.micro_batch import requests_of_rank
from largebatch.distributed.own_job import rank_and_world_size

_IDS_AT_ONCE = 4096


class OrderSampler(Sampler[int]):
    """This rank's sample ids, for `DataLoader(dataset, batch_size=n, sampler=OrderSampler(order))`.

    Rank r of W takes every W-th position from r on, so the k-th batches of all ranks together are the next W n samples
    of the order. Each iteration goes to the end of the epoch in whole rounds of W; the next one goes on behind it. So
    no sample is dropped or repeated, and no rank has one more than another.

    A framework that shares out batches itself (`accelerator.prepare`, transformers) gets `rank=0, world_size=1`.

    Args:
        order: of the samples.
        rank, world_size: of the ranks that share samples out; None: as torch.distributed says.
        samples_seen: position to begin at, over all ranks.

    Attributes:
        samples_seen: position at which the next iteration begins. Set it to resume: a DataLoader asks for ids ahead of
            what the loop has consumed, so only the loop knows it.

    Raises:
        ValueError: for fewer samples than ranks, or a position below 0.

    >>> order = SampleOrder(num_samples=7, seed=0)
    >>> ranks = [OrderSampler(order, rank=rank, world_size=2) for rank in range(2)]
    >>> epochs = [[list(one) for one in ranks] for _ in range(2)]
    >>> [len(part) for epoch in epochs for part in epoch]
    [3, 3, 4, 4]
    >>> sorted(id for epoch in epochs for part in epoch for id in part) == sorted([*range(7), *range(7)])
    True
    """

    def __init__(
        self, order: SampleOrder, rank: int | None = None, world_size: int | None = None, *, samples_seen: int = 0
    ) -> None:
        self.order, (self._rank, self._world_size) = order, _place(rank, world_size)
        if order.num_samples < self._world_size:
            raise ValueError(f"{order.num_samples} samples for {self._world_size} ranks: each needs at least one.")
        self.samples_seen = _position(samples_seen)

    def __len__(self) -> int:
        """Ids of the next iteration."""
        left = self.order.num_samples - self.samples_seen % self.order.num_samples
        return (left // self._world_size) or (left + self.order.num_samples) // self._world_size

    def __iter__(self) -> Iterator[int]:
        start, end = self.samples_seen, self.samples_seen + len(self) * self._world_size
        own = range(start + self._rank, end, self._world_size)
        for at in range(0, len(own), _IDS_AT_ONCE):
            yield from self.order.ids_at(np.array(own[at : at + _IDS_AT_ONCE], dtype=np.int64)).tolist()
        self.samples_seen = end

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch, unless it begins inside of it anyway.

        The last samples of an epoch, which are fewer than ranks, belong to the iteration of the next one.
        """
        self.samples_seen = _in_epoch(self.samples_seen, epoch, self.order, left_over=self._world_size - 1)


class GlobalBatchSampler(Sampler[list[int]]):
    """Ids of this rank's micro-batches, for `DataLoader(dataset, batch_sampler=GlobalBatchSampler(order, plan))`.

    Ids alone: the weight of a micro-batch is `plan.world_size / plan.global_batch_size` under DDP, and ranks meet with
    the last of `plan.micro_batches(rank)`. `GlobalBatches` knows both, and keys the draws inside samples.

    Each iteration has the steps that begin before the epoch ends; the next one goes on behind them. Never give its
    loader to `accelerator.prepare`, which would share out the micro-batches of this rank.

    Args:
        order: of the samples.
        plan: how a global batch is cut and shared, or a ramp of such plans.
        rank: None: as torch.distributed says.
        samples_seen: position to begin at.
        num_steps: steps of an iteration, in place of those of an epoch.

    Attributes:
        samples_seen: as of `OrderSampler`.

    Raises:
        ValueError: if the rank or their number is not the plan's, or for a position below 0.

    >>> plan = BatchPlan.solve(global_batch_size=5, world_size=2, max_micro_batch_size=2)
    >>> order = SampleOrder(num_samples=12, seed=0)
    >>> [[len(ids) for ids in GlobalBatchSampler(order, plan, rank)] for rank in range(2)]
    [[2, 1, 2, 1, 2, 1], [2, 2, 2]]
    """

    def __init__(
        self,
        order: SampleOrder,
        plan: BatchPlan | BatchRamp,
        rank: int | None = None,
        *,
        samples_seen: int = 0,
        num_steps: int | None = None,
    ) -> None:
        self.order, self.ramp = order, BatchRamp.of(plan)
        planned = self.ramp.at(0).world_size
        self._rank, world_size = _place(rank, None if rank is None else planned)
        if world_size != planned:
            raise ValueError(f"The plan is for {planned} ranks, the job has {world_size}. Make one for them.")
        self.samples_seen, self._num_steps = _position(samples_seen), num_steps

    def _steps(self) -> list[BatchPlan]:
        if self._num_steps is not None:
            return [plan for _, plan in self.ramp.steps(self.samples_seen, self._num_steps)]
        position, found = self.samples_seen, []
        end = (position // self.order.num_samples + 1) * self.order.num_samples
        while position < end:
            found.append(self.ramp.at(position))
            position += found[-1].global_batch_size
        return found

    def __len__(self) -> int:
        """Micro-batches of the next iteration on this rank."""
        return sum(len(plan.micro_batches(self._rank)) for plan in self._steps())

    def __iter__(self) -> Iterator[list[int]]:
        steps, start = self._steps(), self.samples_seen
        for request in requests_of_rank(self.order, self.ramp, self._rank, start, len(steps)):
            yield request.ids.tolist()
        self.samples_seen = start + sum(plan.global_batch_size for plan in steps)

    def set_epoch(self, epoch: int) -> None:
        """As of `OrderSampler`."""
        self.samples_seen = _in_epoch(self.samples_seen, epoch, self.order)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and their number as given, or those of the job. A framework that shares out by itself is given 0 of 1."""
    if rank is None and world_size is None:
        return rank_and_world_size(os.environ)
    if rank is None or world_size is None:
        raise ValueError(f"rank={rank}, world_size={world_size}: give both, or neither to ask torch.distributed.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} of world_size={world_size}: ranks count from 0 to world_size - 1.")
    return rank, world_size


def _position(samples_seen: int) -> int:
    if samples_seen < 0:
        raise ValueError(f"samples_seen={samples_seen}: samples from the start of the run, 0 or more.")
    return samples_seen


def _in_epoch(samples_seen: int, epoch: int, order: SampleOrder, *, left_over: int = 0) -> int:
    own = (samples_seen + left_over) // order.num_samples
    return samples_seen if own == epoch else epoch * order.num_samples

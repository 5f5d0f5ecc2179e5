"""One global batch of a loop of one's own: its size, its units, the micro-batches of this rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from largebatch.batch.duration import crosses_multiple
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.distributed.own_job import OwnJob
from largebatch.gradient.accumulation import micro_batch_key
from largebatch.gradient.batch_stream import BatchStream
from largebatch.gradient.own_micro_batch import Joined, OwnMicroBatch
from largebatch.gradient.units import Counted, Units


@dataclass(frozen=True)
class Origin:
    """Where global batches come from, and what their micro-batches have in common; see `GlobalBatches`."""

    job: OwnJob
    seed: int
    joined: Joined
    device: torch.device | None
    batches: BatchStream
    units: Units


@dataclass(eq=False)
class GlobalBatch:
    """One global batch of `GlobalBatches`; iterating over it gives the micro-batches of this rank, once.

    Attributes:
        samples_seen: position at which it starts: the samples of all batches before it.
        plan: how it is cut and shared.
    """

    samples_seen: int
    plan: BatchPlan
    _origin: Origin = field(repr=False)
    _counted: Counted | None = field(default=None, init=False, repr=False)
    _num_taken: int | None = field(default=None, init=False, repr=False)

    @property
    def size(self) -> int:
        """Samples over all ranks."""
        return self.plan.global_batch_size

    @property
    def units(self) -> float:
        """What the loss is divided by, over all ranks: samples, or what the stream's `units` counts.

        Raises:
            RuntimeError: before the first micro-batch is taken, when they are counted.
        """
        if self._counted is None:
            raise RuntimeError("units: they are counted when the first micro-batch is taken. Read them afterwards.")
        return self._counted.number

    def crosses(self, every: int) -> bool:
        """Whether it reaches a multiple of `every` samples: with the length of the data set, the end of an epoch."""
        return crosses_multiple(every, self.samples_seen, self.samples_seen + self.size)

    def __iter__(self) -> Iterator[OwnMicroBatch]:
        if self._num_taken is not None:
            raise RuntimeError(
                "The micro-batches of a global batch are loaded once. To pass through them again, keep them: "
                "micros = list(batch)."
            )
        self._num_taken, origin = 0, self._origin
        parts, self._counted = origin.units.count(self.plan, origin.batches.take(self.plan))
        weight = self._counted.weight(1 if origin.joined == "sum" else origin.job.world_size)
        key = stream_key(origin.seed, "forward", self.samples_seen)
        for data in parts:
            self._num_taken += 1
            yield OwnMicroBatch(
                data,
                weight=0.0 if data.is_placeholder else weight,
                is_last=self.is_taken,
                random_key=micro_batch_key(key, data.index),
                device=origin.device,
                joined=origin.joined,
                world_size=origin.job.world_size,
            )

    @property
    def is_taken(self) -> bool:
        """Whether this rank has taken all of its micro-batches."""
        return self._num_taken == len(self.plan.micro_batches(self._origin.job.rank))

"""The micro-batches of one rank, in order, from any position of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from largebatch.batch.orders import Order
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data.array import Int64Array
from largebatch.data.fetching import BatchSource
from largebatch.data.items import Augment
from largebatch.data.iterables import num_samples_of
from largebatch.data.micro_batch import MicroBatchData, Request, requests_of_rank


class MicroBatchLoader:
    """Loads the micro-batches of one rank: the plan splits the global batch, the order gives its sample ids.

    A step that starts at position p consumes `order.ids(p, B)`; micro-batch i of the plan is the `size_i` samples
    from `offset_i` on. The position is the only state, so a run resumes anywhere, on any number of ranks. Memory grows
    with the micro-batch, not with the global batch.

    Args:
        dataset: in memory (has `fetch(ids) -> (inputs, targets)`), loaded in this process; or any map-style data set,
            loaded by `num_workers` processes, whose number affects only speed.
        order: order of the samples; as long as the data set. Of `StreamSamples` a `StreamOrder`.
        plan: plan of a global batch, or a ramp of plans.
        rank: number of this process.
        augment: (inputs, ids, epochs) -> inputs; keyed by sample, such as `Augmentation`. With `Augmentation.mixing`
            targets are those of `mixed_targets`.
        num_workers: processes that load map-style items; 0 loads in this process.
        to_gpu: put batches onto the current GPU: copied on a stream of their own, images as bytes, and normalised and
            augmented there. The samples have the same random draws as on the host.
        keeps_steps: with `to_gpu`, for steps that begin with all of their micro-batches: these wait in page-locked
            memory of the host, as bytes. Their inputs are copied when they are read, their targets stay on the host.
        prefetch: micro-batches that a thread prepares before they are asked for: of a set in memory, or what the
            workers load. 0: none.
        seed: seed of the random draws inside items of a map-style data set.
        timeout_s: seconds to wait for a worker before it counts as hanging; 0 waits forever.
        skips: leave out samples that cannot be loaded, see `MicroBatchData.skipped`.

    Raises:
        ValueError: if the lengths differ, the rank is outside the plan, or a setting would have no effect.
    """

    def __init__(
        self,
        dataset: Any,
        order: Order,
        plan: BatchPlan | BatchRamp,
        rank: int,
        *,
        augment: Augment | None = None,
        num_workers: int = 0,
        seed: int = 0,
        timeout_s: float = 0,
        skips: bool = False,
        prefetch: int = 0,
        to_gpu: bool = False,
        keeps_steps: bool = False,
    ) -> None:
        self._ramp = BatchRamp.of(plan)
        self.rank = rank
        world_size = self._ramp.at(0).world_size
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: the plan has ranks 0 to {world_size - 1}.")
        self._source = BatchSource(
            dataset,
            augment=augment,
            num_workers=num_workers,
            seed=seed,
            stream="item",
            timeout_s=timeout_s,
            skips=skips,
            prefetch=prefetch,
            to_gpu=to_gpu,
            keeps_steps=keeps_steps,
        )
        if order.num_samples != (count := num_samples_of(dataset)):
            raise ValueError(
                f"The order covers {order.num_samples} samples, but the data set has {count}: they must agree. "
                f"Create the order with len(dataset)."
            )
        self._order = order
        self._pairs = getattr(augment, "mixing", None) is not None

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[MicroBatchData]:
        """This rank's micro-batches of `num_steps` steps, the first of which starts at position `samples_seen`.

        A new call ends the iterators of earlier calls, which then raise RuntimeError.

        Raises:
            ValueError: if `samples_seen` or `num_steps` is negative.
            DataError: when a sample cannot be loaded; names it.
        """
        if samples_seen < 0 or num_steps < 0:
            raise ValueError(f"samples_seen={samples_seen}, num_steps={num_steps}: both must be 0 or more.")
        places = self._order, self._ramp, self.rank, samples_seen, num_steps
        return self._source.load(requests_of_rank(*places, pairs=self._pairs))

    def start(self) -> None:
        """Start the workers now, not with the first micro-batch: before a process group and its threads, if possible.

        Raises:
            DataError: if one does not come to life.
        """
        self._source.start()

    def close(self) -> None:
        """End workers and thread. Iterators of earlier calls then raise RuntimeError."""
        self._source.close()

    def replan(self, plan: BatchPlan | BatchRamp) -> None:
        """Use another plan for the same global batches, from the next call of `micro_batches` on."""
        self._ramp = BatchRamp.of(plan)


class EvaluationLoader:
    """Loads samples of one data set for evaluations, whose workers it keeps from one to the next.

    Args:
        dataset, num_workers, seed, timeout_s, skips, to_gpu: see `MicroBatchLoader`.
        augment: keyed by sample, the same in every evaluation; None: samples are read as they are.

    Raises:
        ValueError: as for `MicroBatchLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        num_workers: int = 0,
        seed: int = 0,
        timeout_s: float = 0,
        skips: bool = False,
        to_gpu: bool = False,
        augment: Augment | None = None,
    ) -> None:
        self._source = BatchSource(
            dataset,
            augment=augment,
            num_workers=num_workers,
            seed=seed,
            stream="evaluation item",
            timeout_s=timeout_s,
            skips=skips,
            to_gpu=to_gpu,
        )
        self.start, self.close = self._source.start, self._source.close

    def batches(self, ids: Int64Array, micro_batch_size: int | Sequence[int]) -> Iterator[MicroBatchData]:
        """See `evaluation_batches`. A new call ends the iterators of earlier ones, which then raise RuntimeError."""
        parts = _split(ids, micro_batch_size)
        return self._source.load(
            Request(ids=part, epochs=np.zeros(len(part), dtype=np.int64), index=index, samples_seen=0)
            for index, part in enumerate(parts)
        )


def evaluation_batches(
    dataset: Any, ids: Int64Array, micro_batch_size: int | Sequence[int], **options: Any
) -> Iterator[MicroBatchData]:
    """The samples `ids` in order, without augmentation, in micro-batches of `micro_batch_size`; the last may be less.

    `micro_batch_size` may also list the size of every micro-batch.

    Every id comes exactly once, without padding or repetition. `epochs` and `samples_seen` of the batches are zero.
    Random items of a map-style data set are the same in every evaluation. Options and errors as for
    `EvaluationLoader`.
    """
    return EvaluationLoader(dataset, **options).batches(ids, micro_batch_size)


def _split(ids: Int64Array, micro_batch_size: int | Sequence[int]) -> list[Int64Array]:
    if isinstance(micro_batch_size, int):
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={micro_batch_size}: must be at least 1.")
        ends: Any = range(micro_batch_size, len(ids), micro_batch_size)
    else:
        assert sum(micro_batch_size) == len(ids)
        ends = np.cumsum(micro_batch_size)[:-1]
    return np.split(ids, ends) if len(ids) else []

"""Counts the samples, labels or tokens of a global batch over all ranks: the loss is divided by their number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.losses import Loss


class Units:
    """Counts the units of a whole global batch from the targets of all ranks, before its first backward pass.

    Only where samples differ in units (masked tokens) this needs a collective, and only there the micro-batches of a
    step are kept in host memory.

    Args:
        runtime: the job.
        loss: knows the units of a sample.
        fixed: whether all samples have the same number; see `units_are_fixed`.
        clock: the ranks wait for the collective.
    """

    def __init__(self, runtime: Runtime, loss: Loss, *, fixed: bool, clock: ReductionClock) -> None:
        self._runtime, self._loss, self._fixed, self._clock = runtime, loss, fixed, clock
        self._per_sample: int | None = None

    def count(self, plan: BatchPlan, own: Iterator[Any]) -> tuple[Iterator[Any], float]:
        """This rank's micro-batches, which are looked at, and the units of the whole global batch."""
        if self._fixed:
            if self._per_sample is None:
                first = next(own)
                self._per_sample = int(self._loss.units_per_sample(first.targets[:1]).sum())
                own = itertools.chain([first], own)
            return own, plan.global_batch_size * self._per_sample
        kept = list(own)
        units = [0.0] * len(plan.micro_batch_sizes)
        for part in kept:
            if not part.is_placeholder:
                units[part.index] = float(self._loss.units_per_sample(part.targets).sum())
        # One number per micro-batch, added up without rounding: weights of labels have digits, and the sum must not
        # depend on which rank has which.
        with self._clock.waiting():
            return iter(kept), math.fsum(self._runtime.sum(units))

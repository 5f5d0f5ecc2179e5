"""Counts the samples, labels or tokens of a global batch over all ranks: the loss is divided by their number."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.own_job import OwnJob
from largebatch.distributed.pending_sum import PendingSum
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.sending import sent
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.step import Weight


class CountsUnits(Protocol):
    """The part of a loss that is needed to count."""

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Units of each sample; see `Loss`."""


@dataclass(frozen=True)
class CountedBy:
    """A function of the user's, targets -> units of each sample, a mask or their number, in the place of a loss."""

    units: Callable[[Tensor], Any]

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """As `CountsUnits`; of any shape, as it is summed."""
        return torch.as_tensor(self.units(targets))


def each_sample(targets: Tensor) -> Tensor:
    """1 for each sample of [n, ...]."""
    return torch.ones(len(targets))


@dataclass(frozen=True)
class Counted:
    """The units of a whole global batch.

    Attributes:
        on_host: their number, or that of each micro-batch, which is maybe still on its way to the host.
        on_device: the latter where a GPU has them before the host, float64; None: the host knows them.
    """

    on_host: float | PendingSum
    on_device: Tensor | None = None

    @property
    def number(self) -> float:
        """The units; waits for a GPU, if it has to.

        Added up without rounding: weights of labels have digits, and the sum must not depend on which rank has which.
        """
        return math.fsum(self.on_host.result()) if isinstance(self.on_host, PendingSum) else self.on_host

    def weight(self, scale: float) -> Weight:
        """`scale` over the units, which multiplies the loss; where nothing counts, and gradients are 0, `scale`."""
        if self.on_device is None:
            return scale / (self.number or 1)
        total = self.on_device.sum()
        return scale / total.masked_fill(total == 0, 1)


class Units:
    """Counts the units of a whole global batch from the targets of all ranks, before its first backward pass.

    Only where samples differ in units (masked tokens) this needs a collective, and only there the micro-batches of a
    step are kept in host memory. On a GPU the host does not wait for it, and loads the next step in the meantime.

    Args:
        runtime: the job.
        loss: knows the units of a sample.
        fixed: whether all samples have the same number; see `units_are_fixed`.
        clock: learns that the ranks wait for the collective; None: there is none.
    """

    def __init__(
        self, runtime: Runtime | OwnJob, loss: CountsUnits, *, fixed: bool, clock: ReductionClock | None = None
    ) -> None:
        self._runtime, self._loss, self._fixed, self._clock = runtime, loss, fixed, clock
        self._per_sample: int | None = None

    def count(self, plan: BatchPlan, own: Iterator[Any]) -> tuple[Iterator[Any], Counted]:
        """This rank's micro-batches, which are looked at, and the units of the whole global batch."""
        if self._fixed:
            if self._per_sample is None:
                first = next(own)
                self._per_sample = int(self._loss.units_per_sample(first.targets[:1]).sum())
                own = itertools.chain([first], own)
            return own, Counted(plan.global_batch_size * self._per_sample)
        kept = list(own)
        units = [0.0] * len(plan.micro_batch_sizes)
        for part in kept:
            if not part.is_placeholder:
                units[part.index] = float(self._loss.units_per_sample(part.targets).sum())
        with contextlib.nullcontext() if self._clock is None else self._clock.waiting():
            summed = sent(torch.tensor(units, dtype=torch.float64), self._runtime.device)
            pending = self._runtime.start_sum(summed)
            if summed.is_cuda:
                return iter(kept), Counted(pending, summed)
            pending.result()
        return iter(kept), Counted(pending)

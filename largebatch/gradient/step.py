"""One optimizer step before it is taken: its plan, learning rate, random key and measurements, equal on every rank."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import Tensor

from largebatch.batch.duration import crosses_multiple
from largebatch.batch.plan import BatchPlan

Weight = float | Tensor
"""The factor of a loss sum: a number, or a float64 scalar on the device where the host does not wait to know it."""


class Measures(enum.Flag):
    """What a step measures besides its gradient.

    LOSS: the mean loss of the global batch, summed over ranks; a small collective.
    GRAD_NORM: the L2 norm of the global gradient.
    COMMUNICATION: when each part of it was reduced, and what of that no computation hides; waits for a GPU once.
    NORMS: the norms of micro-batch gradients, see `MicroBatchNorms`; a pass over the gradients per micro-batch.
    """

    NONE = 0
    LOSS = enum.auto()
    GRAD_NORM = enum.auto()
    COMMUNICATION = enum.auto()
    NORMS = enum.auto()


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: from 1.
        samples_seen: samples that all steps before it consumed.
        plan: how its global batch is cut and shared.
        lr: its learning rate.
        random_key: draws inside the model are keyed by it and by the index of the micro-batch.
        is_last: whether the run ends with it.
        measures: what it measures. A function of the step, so all ranks make the same collectives.
    """

    number: int
    samples_seen: int
    plan: BatchPlan
    lr: float
    random_key: int
    is_last: bool = False
    measures: Measures = Measures.NONE

    def is_due(self, every: int | None) -> bool:
        """Whether its number is a multiple of `every`; None: never."""
        return every is not None and self.number % every == 0

    def crosses(self, every: int | None) -> bool:
        """Whether a multiple of `every` samples lies in it, its end included; None: never."""
        return every is not None and crosses_multiple(
            every, self.samples_seen, self.samples_seen + self.plan.global_batch_size
        )

    def has_row(self, every: int) -> bool:
        """Whether it is due, or the last one."""
        return self.is_last or self.number % every == 0

"""The outcome of one step, as observers see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from largebatch.batch.plan import BatchPlan
from largebatch.gradient.global_gradient import BatchResult
from largebatch.gradient.micro_batch_norms import StepNorms
from largebatch.gradient.reduction_clock import Timeline
from largebatch.gradient.step import Measures, Step
from largebatch.training.guard import GuardDecision
from largebatch.training.step_sums import Status, StepSums


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, as the observers see it.

    Attributes:
        taken: the step, as all ranks have it.
        step, samples_seen: after the step, as this rank counts them.
        batch: what its global batch gave, the plan that was followed included.
        sums: over ranks, maybe still on their way; None after a step that made none.
        grad_norm: L2 norm of the global gradient before clipping; None when this step did not need it.
        decision: the guard's; None without a guard.
        timeline: of the gradient's reduction on this rank; None when this step did not measure communication, and on
            one rank.
        saves_here: whether a rank asked for a checkpoint: all of them agree on the step after which it is saved.
        status: how the run stands, as far as the ranks know.
    """

    taken: Step
    step: int
    samples_seen: int
    batch: BatchResult
    sums: StepSums | None = None
    grad_norm: torch.Tensor | None = None
    decision: GuardDecision | None = None
    timeline: Timeline | None = None
    saves_here: bool = False
    status: Status = "running"

    @property
    def plan(self) -> BatchPlan:
        """The plan that the step followed."""
        return self.batch.plan

    @property
    def is_skipped(self) -> bool:
        """Whether the guard left the update out: then loss and gradients say nothing of the training."""
        return self.decision is not None and self.decision.skips

    @property
    def norms(self) -> StepNorms | None:
        """Norms of micro-batch gradients (`MicroBatchNorms`); None if not measured, or if the update was left out."""
        return None if self.is_skipped else self.batch.norms

    @property
    def mean_loss(self) -> float:
        """Mean loss over the whole global batch.

        Raises:
            ValueError: in a step that did not measure it: whether its sums exist anyway depends on how long steps take.
        """
        if self.sums is None or Measures.LOSS not in self.taken.measures:
            raise ValueError(
                f"report.mean_loss of step {self.taken.number}: the loss is summed over ranks in steps that measure "
                "it. Return Measures.LOSS from the observer's `asks`."
            )
        return self.sums.loss_sum / (self.batch.num_units or 1)

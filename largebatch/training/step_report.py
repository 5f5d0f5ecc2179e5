"""How far a run is, and what one of its steps did."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from largebatch.batch.plan import BatchPlan
from largebatch.gradient.micro_batch_norms import StepNorms
from largebatch.gradient.reduction_clock import Timeline
from largebatch.training.agreement import Agreement
from largebatch.training.guard import Judgement


@dataclass
class Progress:
    """How far a run is. `samples_seen` says everything; `step` is its count in optimizer steps.

    `train_s` is the time that this process spent in steps, observers left out.
    """

    step: int = 0
    samples_seen: int = 0
    train_s: float = 0.0


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, as the observers see it.

    Attributes:
        step, samples_seen: after the step.
        plan: that the step followed.
        lr: learning rate that the step used.
        num_units: samples, labels or tokens of the whole global batch, or the sum of their weights.
        agreement: sums over ranks, maybe still on their way; None after a step that made none. One that is logged does.
        grad_norm: L2 norm of the global gradient before clipping; None when this step did not need it.
        data_s: seconds that this rank waited for data.
        communication_s: seconds of exposed communication; None when this step did not measure it.
        own_s: seconds in which this rank did not wait for other ones; None on one rank, and when this step did not
            measure communication.
        norms: of micro-batch gradients, see `MicroBatchNorms`; None when this step did not measure them.
        timeline: of the gradient's reduction on this rank; None when this step did not measure it, and on one rank.
        judgement: of the numeric guard; None where there is none.
    """

    step: int
    samples_seen: int
    plan: BatchPlan
    lr: float
    num_units: float
    agreement: Agreement | None
    grad_norm: torch.Tensor | None
    data_s: float
    communication_s: float | None
    own_s: float | None = None
    norms: StepNorms | None = None
    timeline: Timeline | None = None
    judgement: Judgement | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether the guard left the update out: then loss and gradients say nothing of the training."""
        return self.judgement is not None and self.judgement.skips

    @property
    def mean_loss(self) -> float:
        """Mean loss over the whole global batch; only where there is an agreement."""
        assert self.agreement is not None, "the loss is summed over ranks in steps that are logged"
        return self.agreement.loss_sum / (self.num_units or 1)

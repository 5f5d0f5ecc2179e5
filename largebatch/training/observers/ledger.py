"""ledger.jsonl: what each optimizer step consumed and produced, so that two runs can be compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.checksums import tensors_sha256
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.sending import sent
from largebatch.gradient.batch_stream import Taken
from largebatch.gradient.step import Measures, Step
from largebatch.records.trackers import Row, Tracker
from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport


class LedgerObserver(Observer):
    """Writes a row for every optimizer step: see `largebatch.records.ledger`.

    The ids are those that the loaders of all ranks handed out, not those that the order says: each rank puts its own at
    their places in the global batch, one sum over ranks makes the list whole. It costs an all-reduce of 8 bytes per
    sample and the sum of the loss in every step, and SHA-256 over the weights on rank 0 every `parameters_every` steps.

    Args:
        tracker: where rows go, on rank 0; None on other ranks.
        parameters_every: steps between hashes of the weights; the last step has one, too.
    """

    def __init__(self, tracker: Tracker | None, *, parameters_every: int) -> None:
        self._tracker = tracker
        self._parameters_every = parameters_every

    def asks(self, step: Step) -> Measures:
        """The loss of every step."""
        return Measures.LOSS

    def after_step(self, run: Run, report: StepReport) -> None:
        """Write the row of this step."""
        ids = ids_over_ranks(run.runtime, report.plan, report.batch.taken)
        if self._tracker is None:
            return
        row: Row = {
            "step": report.step,
            "samples_seen": report.samples_seen,
            "ids": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            "lr": float(report.taken.lr).hex(),
            "loss": report.mean_loss.hex(),
        }
        if report.taken.has_row(self._parameters_every):
            row["parameters"] = tensors_sha256(run.module.named_parameters())
        if report.decision is not None and report.decision.is_bad:
            row["guard"] = report.decision.action
        self._tracker.log(row)


def ids_over_ranks(runtime: Runtime, plan: BatchPlan, taken: Sequence[Taken]) -> Any:
    """Sample ids of the global batch in their order, int64 [global batch size]; -1 where no rank had a sample.

    Args:
        runtime: the job.
        plan: where a micro-batch lies in the global batch.
        taken: the samples of this rank's micro-batches.
    """
    offsets = np.concatenate([[0], np.cumsum(plan.micro_batch_sizes)])
    own = np.zeros(plan.global_batch_size, dtype=np.int64)
    for one in taken:
        ids = one.asked.copy()
        ids[[place for place, _ in one.skipped]] = -1
        # Too many samples, or an unknown place, must give other ids on all ranks, not an error on one of them.
        places = offsets[one.index % len(offsets)] + np.arange(len(ids))
        np.add.at(own, places % plan.global_batch_size, ids + 1)
    total = sent(torch.from_numpy(own), runtime.device)
    runtime.sum_in_place(total)
    return total.cpu().numpy() - 1

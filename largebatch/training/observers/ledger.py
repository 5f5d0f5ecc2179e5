"""ledger.jsonl: what each optimizer step consumed and produced, so that two runs can be compared bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.distributed.checksums import tensors_sha256
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_stream import Loader
from largebatch.records.trackers import Row, Tracker
from largebatch.training.loop import Run, StepReport


class WatchedLoader:
    """Passes micro-batches on and remembers which samples they held until `take_delivered` is called."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._delivered: list[tuple[int, Any]] = []

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        """As the loader does."""
        self._delivered = []
        for micro_batch in self._loader.micro_batches(samples_seen, num_steps):
            ids = micro_batch.asked.copy()
            ids[[place for place, _ in micro_batch.skipped]] = -1
            self._delivered.append((micro_batch.index, ids))
            yield micro_batch

    def replan(self, plan: BatchRamp) -> None:
        """As the loader does."""
        self._loader.replan(plan)

    def take_delivered(self) -> list[tuple[int, Any]]:
        """(index, sample ids; -1: skipped) of the micro-batches that were handed out since the last call."""
        delivered, self._delivered = self._delivered, []
        return delivered


class LedgerObserver:
    """Writes a row for every optimizer step: see `largebatch.records.ledger`.

    The ids are those that the loaders of all ranks handed out, not those that the order says: each rank puts its own at
    their places in the global batch, one sum over ranks makes the list whole. It costs an all-reduce of 8 bytes per
    sample and the sum of the loss in every step, and SHA-256 over the weights on rank 0 every `parameters_every` steps.

    Args:
        tracker: where rows go, on rank 0; None on other ranks.
        loader: the run's loader, watched.
        parameters_every: steps between hashes of the weights; the last step has one, too.
    """

    def __init__(self, tracker: Tracker | None, loader: WatchedLoader, *, parameters_every: int) -> None:
        self._tracker = tracker
        self._loader = loader
        self._parameters_every = parameters_every

    def on_start(self, run: Run) -> None:
        """Ask for the loss of every step."""
        run.needs_every_loss = True

    def after_step(self, run: Run, report: StepReport) -> None:
        """Write the row of this step."""
        ids = ids_over_ranks(run.runtime, report.plan, self._loader.take_delivered())
        if self._tracker is None:
            return
        row: Row = {
            "step": report.step,
            "samples_seen": report.samples_seen,
            "ids": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            "lr": float(report.lr).hex(),
            "loss": report.mean_loss.hex(),
        }
        if report.step % self._parameters_every == 0 or report.step == run.num_steps:
            row["parameters"] = tensors_sha256(run.module.named_parameters())
        if report.judgement is not None and report.judgement.is_bad:
            row["guard"] = report.judgement.action
        self._tracker.log(row)

    def on_end(self, run: Run, status: str) -> None:
        """Nothing is left over: every step wrote its row."""


def ids_over_ranks(runtime: Runtime, plan: BatchPlan, delivered: list[tuple[int, Any]]) -> Any:
    """Sample ids of the global batch in their order, int64 [global batch size]; -1 where no rank had a sample.

    Args:
        runtime: the job.
        plan: where a micro-batch lies in the global batch.
        delivered: (index of the micro-batch, its sample ids) on this rank.
    """
    offsets = np.concatenate([[0], np.cumsum(plan.micro_batch_sizes)])
    own = np.zeros(plan.global_batch_size, dtype=np.int64)
    for index, ids in delivered:
        # Too many samples, or an unknown place, must give other ids on all ranks, not an error on one of them.
        places = offsets[index % len(offsets)] + np.arange(len(ids))
        np.add.at(own, places % plan.global_batch_size, np.asarray(ids) + 1)
    total = torch.from_numpy(own).to(runtime.device)
    runtime.sum_in_place(total)
    return total.cpu().numpy() - 1

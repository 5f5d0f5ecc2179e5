"""What the numeric guard found, in the rows of a run."""

from __future__ import annotations

import math

from largebatch.training.loop import Run, StepReport
from largebatch.training.observers.metrics import Journal


class GuardObserver:
    """Logs a row for every bad step, as soon as it has happened.

    It has the step's `guard/loss` and `guard/grad_norm`, their limits where there are any, and the counts of the guard:
    `guard/bad`, `guard/skipped`, `guard/rolled_back` and `guard/overflows`, steps since the run began.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def on_start(self, run: Run) -> None:
        """Nothing yet."""

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log, if the step was bad."""
        judgement = report.judgement
        if run.guard is None or judgement is None or not judgement.is_bad:
            return
        row = run.guard.counts.row() | {"guard/loss": judgement.loss, "guard/grad_norm": judgement.grad_norm}
        limits = {"guard/loss_limit": judgement.loss_limit, "guard/grad_norm_limit": judgement.grad_norm_limit}
        self._journal.log(run.progress, row | {name: limit for name, limit in limits.items() if math.isfinite(limit)})

    def on_end(self, run: Run, status: str) -> None:
        """Every bad step has its row."""

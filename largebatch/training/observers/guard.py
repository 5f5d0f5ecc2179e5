"""What the numeric guard found, in the rows of a run."""

from __future__ import annotations

import math

from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


class GuardObserver(Observer):
    """Logs a row for every bad step, as soon as it has happened.

    It has the step's `guard/loss` and `guard/grad_norm`, their limits where there are any, and the counts of the guard:
    `guard/bad`, `guard/skipped`, `guard/rolled_back` and `guard/overflows`, steps since the run began.
    """

    def __init__(self, rows: RowLog) -> None:
        self._rows = rows

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log, if the step was bad."""
        decision = report.decision
        if run.guard is None or decision is None or not decision.is_bad:
            return
        row = run.guard.counts.row() | {"guard/loss": decision.loss, "guard/grad_norm": decision.grad_norm}
        limits = {"guard/loss_limit": decision.loss_limit, "guard/grad_norm_limit": decision.grad_norm_limit}
        self._rows.log(run.progress, row | {name: limit for name, limit in limits.items() if math.isfinite(limit)})

"""What the numeric guard found, in the rows of a run."""

from __future__ import annotations

import math
from dataclasses import asdict

from largebatch.guard import Counts
from largebatch.loop import Run, StepReport
from largebatch.observers.metrics import Journal
from largebatch.trackers import Row


class GuardObserver:
    """Logs a row for every bad step, and one of the counts with every row of the training.

    `guard/bad`, `guard/skipped`, `guard/rolled_back` and `guard/overflows` count steps since the run began. The row of
    a bad step has its `guard/loss` and `guard/grad_norm` and, where there are any, their limits.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def on_start(self, run: Run) -> None:
        """Nothing yet."""

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log, if the step was bad, or is logged anyway."""
        if run.guard is None or (judgement := report.judgement) is None:
            return
        row: Row = {}
        if judgement.is_bad:
            row = {"guard/loss": judgement.loss, "guard/grad_norm": judgement.grad_norm}
            limits = {"guard/loss_limit": judgement.loss_limit, "guard/grad_norm_limit": judgement.grad_norm_limit}
            row |= {name: limit for name, limit in limits.items() if math.isfinite(limit)}
        if judgement.is_bad or run.is_logged(run.counted_step):
            self._journal.log(run.progress, counts_row(run.guard.counts) | row)

    def on_end(self, run: Run, status: str) -> None:
        """Every bad step has its row."""


def counts_row(counts: Counts) -> Row:
    """The counts under the names of rows.

    >>> counts_row(Counts(bad=2, skipped=2))
    {'guard/bad': 2, 'guard/skipped': 2, 'guard/rolled_back': 0, 'guard/overflows': 0}
    """
    return {f"guard/{name}": count for name, count in asdict(counts).items()}

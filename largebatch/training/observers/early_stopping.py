"""Finishes a run whose metric has not improved for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from largebatch.training.loop import Observer, Run
from largebatch.training.observers.watched import Watched
from largebatch.training.step_report import StepReport


@dataclass
class EarlyStoppingObserver(Observer):
    """Finishes the run `patience` samples after the best value of a metric, at the next value that is no better.

    All ranks have the same values, so they decide alike. What it remembers is in the checkpoint: a resumed run counts
    on from there, and one that had ended ends at once, unless the patience was raised.

    Attributes:
        watched: the metric.
        patience: samples without a better value.
        min_delta: a better value is better by more than this.
        best: the best value so far; None before the first.
        best_at: the samples seen at it.
    """

    watched: Watched
    patience: int
    min_delta: float = 0.0
    best: float | None = None
    best_at: int = 0

    def on_start(self, run: Run) -> str | None:
        """Count an evaluation that was owed; a run that had ended is over."""
        if self.watched.evaluation.made_up_at == run.progress.step:
            return self._count(run, self.watched.read(run))
        return self._reason(run)

    def after_step(self, run: Run, report: StepReport) -> str | None:
        """Count the value of this step, if there is one."""
        reason = self._count(run, self.watched.read(run, report))
        return None if report.taken.is_last else reason

    def state(self) -> dict[str, Any]:
        """The best value, where it was, and of what."""
        return {"key": self.watched.key, "best": self.best, "best_at": self.best_at}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, if it is of the same metric."""
        if state["key"] == self.watched.key:
            self.best, self.best_at = state["best"], state["best_at"]

    def _count(self, run: Run, value: float | None) -> str | None:
        if value is None:
            return None
        if self.watched.improves(value, self.best, by=self.min_delta):
            self.best, self.best_at = value, run.progress.samples_seen
        return self._reason(run)

    def _reason(self, run: Run) -> str | None:
        waited = run.progress.samples_seen - self.best_at
        if self.best is None or waited < self.patience:
            return None
        return (
            f"stopped early: no {self.watched.key} better than {self.best:.6g} in {waited:,} samples "
            f"(patience {self.patience:,})"
        )

"""What tests put into a run to see what it does: observers that call a function, trackers that keep rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport


class AfterStep(Observer):
    """An observer that calls a function after every step, or after step `only`."""

    def __init__(self, action: Callable[[Run, StepReport], object], *, only: int | None = None) -> None:
        self.action, self.only = action, only

    def after_step(self, run: Run, report: StepReport) -> None:
        if self.only in (None, report.step):
            self.action(run, report)


class Rows:
    """A tracker that keeps its rows."""

    run_id = None

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, summary: dict[str, Any], plots: Any) -> None: ...

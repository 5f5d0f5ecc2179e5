"""A value of the rows that decides something: read alike on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.training.loop import Run
from largebatch.training.observers.evaluation import EvaluationObserver
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


@dataclass(frozen=True)
class Watched:
    """One key of the rows, of which larger or smaller values are better.

    An evaluation's values are on every rank. Of another key rank 0's row counts, which all ranks ask for in every step
    with a training row: a small collective that depends on the step alone.

    Attributes:
        key: of metrics.jsonl.
        larger_is_better: its direction.
        evaluation: comes before.
        rows: where rank 0's values are; None: the evaluation writes this key.
        every: steps between training rows.
    """

    key: str
    larger_is_better: bool
    evaluation: EvaluationObserver
    rows: RowLog | None = None
    every: int = 10

    def read(self, run: Run, report: StepReport | None = None) -> float | None:
        """Its value after this step; None if there is none. Without a report, of the evaluation alone."""
        step = run.progress.step
        if self.rows is None:
            value = self.evaluation.last.get(self.key) if self.evaluation.last_step == step else None
        elif report is not None and report.taken.has_row(self.every):
            value = run.runtime.broadcast(self.rows.at(step).get(self.key))
        else:
            return None
        return None if value is None or math.isnan(float(value)) else float(value)

    def improves(self, value: float, best: float | None, *, by: float = 0.0) -> bool:
        """Whether `value` is better than `best` by more than `by`; the first value always is."""
        return best is None or (value - best > by if self.larger_is_better else best - value > by)

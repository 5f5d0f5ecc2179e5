"""How sharp the place is that a run has reached, while it trains."""

from __future__ import annotations

import math
from typing import Any

from largebatch.diagnostics.sharpness.measurement import Sharpness, measure_sharpness
from largebatch.diagnostics.sharpness.settings import SharpnessSettings
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.losses import Loss
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


class SharpnessObserver(Observer):
    """Measures the sharpness of the weights every `every` samples and after the last step, and logs a row.

    `sharpness/lambda_max` with `sharpness/lambda_max_residual`, `sharpness/trace` with `sharpness/trace_stderr`, and
    `sharpness/m_sharpness` with `sharpness/m_sharpness_stderr`: as `largebatch measure sharpness` measures them, with
    the run's own precision of weights, and in eval mode with the running statistics of the moment.

    Args:
        rows: for the rows.
        subset: samples of the training set, not augmented.
        loss: a sum over samples, without smoothing.
        settings: how precisely.
        seed: of all random vectors.
        every: samples between measurements.
    """

    def __init__(
        self, rows: RowLog, *, subset: FixedSubset, loss: Loss, settings: SharpnessSettings, seed: int, every: int
    ) -> None:
        self._rows = rows
        self._subset = subset
        self._loss: Any = loss
        self._settings, self._seed = settings, seed
        self._every = every
        self._last_step = -1

    def after_step(self, run: Run, report: StepReport) -> None:
        """Measure, if the interval is over."""
        if report.taken.crosses(self._every):
            self._measure(run)

    def on_end(self, run: Run, status: str) -> None:
        """Measure the final weights."""
        if status == "finished" and self._last_step != run.progress.step:
            self._measure(run)

    def _measure(self, run: Run) -> None:
        self._last_step = run.progress.step
        with run.gradient.statistics.merged():
            found = measure_sharpness(
                run.module, self._loss, self._subset, run.runtime, self._settings, seed=self._seed
            )
        if found is not None:
            self._rows.log(run.progress, row_of(found))


def row_of(found: Sharpness) -> Row:
    """What is logged; errors that a single draw does not tell are left out."""
    row: Row = {
        "sharpness/lambda_max": found.lambda_max.value,
        "sharpness/lambda_max_residual": found.lambda_max.residual,
    }
    for name, estimate in (("trace", found.trace), ("m_sharpness", found.m_sharpness)):
        row[f"sharpness/{name}"] = estimate.value
        if not math.isnan(estimate.standard_error):
            row[f"sharpness/{name}_stderr"] = estimate.standard_error
    return row

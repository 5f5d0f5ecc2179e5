"""The 1/B law of a run while it trains, from the micro-batches that a step computes anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from largebatch.diagnostics.noise.variance_trend import Trend, VarianceTrend
from largebatch.records.trackers import Row
from largebatch.training.loop import Run, StepReport
from largebatch.training.observers.metrics import Journal


class VarianceObserver:
    """Measures the gradient variance at 1, 2, 4, ... micro-batches every `every` steps and logs a row each time.

    `variance/at_B` is the variance of the mean gradient of B samples, as a running mean; `variance/slope` with its
    interval, `variance/slope_low` to `variance/slope_high`, is the power with which it falls: -1 by the law. Gradients
    are taken before any reduction between ranks; see `MicroBatchGroups`, which also says what it costs and which steps
    cannot be measured.

    Args:
        journal: for the rows.
        every: steps between measurements.
        window: measurements that count.
    """

    def __init__(self, journal: Journal, *, every: int, window: int) -> None:
        self._journal = journal
        self._every = every
        self._trend = VarianceTrend(journal.num_samples, window)
        self.latest: Trend | None = None

    def on_start(self, run: Run) -> None:
        """Ask for the groups of micro-batch gradients."""
        run.groups_every = self._every

    def after_step(self, run: Run, report: StepReport) -> None:
        """Take the measurement of this step, if it made one."""
        if report.groups is None:
            return
        self._trend.add(report.groups.sizes, report.groups.result())
        self.latest = self._trend.estimate()
        if self.latest is not None:
            self._journal.log(run.progress, row_of(self.latest))

    def on_end(self, run: Run, status: str) -> None:
        """Nothing is left over."""

    def state(self) -> dict[str, Any]:
        """The measurements, as plain values."""
        return self._trend.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._trend.load(state)


def row_of(trend: Trend) -> Row:
    """What is logged; keys of what is not known are left out."""
    row: Row = {f"variance/at_{size}": variance for size, variance in trend.variances.items()}
    if trend.slope is not None:
        low, high = trend.slope.interval
        row |= {"variance/slope": trend.slope.value, "variance/slope_low": low, "variance/slope_high": high}
    return row

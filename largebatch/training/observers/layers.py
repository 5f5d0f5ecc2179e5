"""Trust ratios and relative updates, layer by layer: how much of the learning rate each layer really gets."""

from __future__ import annotations

from largebatch.optim import StepTelemetry, row_of_layers, summary_of
from largebatch.records.trackers import Row, Tracker
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.metrics import RowLog
from largebatch.training.step_report import StepReport


class LayersObserver(Observer):
    """Every `every` steps: a row of quantiles over layers for the trackers, and one of all layers for layers.jsonl.

    Rank 0 measures, with a copy of the weights during these steps; the others, and other steps, pay nothing.
    `trust_ratio/*` are over tensors that adapt, `update_to_weight/*` over all that have a gradient and were not zero.

    Args:
        rows: for the summary row.
        tracker: of layers.jsonl, on rank 0; None on other ranks.
        every: steps between measurements.
    """

    def __init__(self, rows: RowLog, tracker: Tracker | None, *, every: int) -> None:
        self._rows = rows
        self._tracker = tracker
        self._every = every
        self._telemetry: StepTelemetry | None = None

    def on_start(self, run: Run) -> None:
        """Ask the optimizer to be called before and after its steps."""
        if self._tracker is not None:
            self._telemetry = StepTelemetry(run.optimizer, lambda: run.steps.number % self._every == 0)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log what was measured; nothing, if a loss scaler left the step out."""
        if self._tracker is None or self._telemetry is None or not (steps := self._telemetry.take()):
            return
        self._rows.log(run.progress, dict(summary_of(list(steps.values()))))
        row: Row = {"step": report.step, "samples_seen": report.samples_seen}
        self._tracker.log({**row, **row_of_layers(steps, run.module.named_parameters())})

    def on_end(self, run: Run, status: str) -> None:
        """Leave the optimizer alone."""
        if self._telemetry is not None:
            self._telemetry.close()

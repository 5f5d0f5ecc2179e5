"""Training metrics: loss, learning rate, gradient norm, throughput, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from largebatch.gradient.step import Measures, Step
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.memory import peak_memory
from largebatch.training.observers.throughput import Throughput
from largebatch.training.observers.typical_times import TypicalTimes
from largebatch.training.progress import Progress
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport

_OF_A_ROW = Measures.LOSS | Measures.GRAD_NORM | Measures.COMMUNICATION


class MetricsObserver(Observer):
    """Logs a row every `every` steps and after the last step.

    The loss is that of the step's whole global batch, summed over ranks. Times are rank 0's: `time/step_s` and
    `time/data_s` are means over the steps since the last row; `time/communication_s` is the exposed communication of
    the row's own step; `time/compute_s` is the rest. `memory/peak_bytes` is the most so far: on a GPU of tensors, on a
    CPU of rank 0's whole process. What follows the batch is that of the row's own step. With a numeric guard, `guard/*`
    are its counts.

    Args:
        rows: for the rows.
        every: steps between rows.
        more: what an observer called before this one has to add to the row of a step.
        throughput: units of it besides samples.

    Attributes:
        times: the usual ones of this process's steps; None before the first of them.
    """

    _num_runs = 0  # of this process: the peak of its memory is that of all of them

    def __init__(
        self,
        rows: RowLog,
        *,
        every: int = 10,
        more: Callable[[], Row] = dict,
        throughput: Throughput = Throughput(),  # noqa: B008, frozen
    ) -> None:
        self._rows, self._every = rows, every
        self._more, self._throughput = more, throughput
        self._began = Progress()
        self._data_s = 0.0
        self._window_start = Progress()
        self.times: TypicalTimes | None = None
        self._memory_is_own = False

    def on_start(self, run: Run) -> None:
        """Begin the first window."""
        self._began = replace(run.progress)
        self.times = TypicalTimes(run.runtime.device)
        MetricsObserver._num_runs += 1
        self._memory_is_own = MetricsObserver._num_runs == 1
        self._begin_window(run)

    def asks(self, step: Step) -> Measures:
        """What a row has."""
        return _OF_A_ROW if step.has_row(self._every) else Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> None:
        """Log, if this step is due."""
        self._data_s += report.batch.data_s
        if report.taken.has_row(self._every):
            row = self._row(run, report)
            self._keep_times(row, report.step - self._window_start.step)
            self._rows.log(run.progress, row | self._more())
            self._begin_window(run)

    def overall(self, run: Run) -> dict[str, Any]:
        """Throughput over the steps that this process has made; None where it has made none, or it is not known."""
        progress = run.progress
        if not progress.train_s:
            return {"samples_per_s": None, "mfu": None}
        samples_per_s = (progress.samples_seen - self._began.samples_seen) / progress.train_s
        values: dict[str, Any] = {"samples_per_s": samples_per_s, "mfu": None}
        values |= self._throughput.values(samples_per_s, num_devices=run.runtime.world_size)
        if self._throughput.tokens_per_sample is not None:
            values["tokens_seen"] = progress.samples_seen * self._throughput.tokens_per_sample
        return values

    def measured(self, run: Run) -> dict[str, Any]:
        """What predictions are graded by: usual times, see `TypicalTimes`, and the peak of `memory` in bytes.

        The peak is left out of a process that has trained another run before: it may be that run's. A run with a ramp,
        or whose micro-batches became smaller than its plan says, has none: its times are of no one batch.
        """
        batches = run.steps.batches
        if self.times is None or len(batches.ramp.plans) > 1 or batches.is_lowered:
            return {}
        plan = batches.ramp.at(run.progress.samples_seen)
        found = self.times.values(steps_per_epoch=self._rows.num_samples / plan.global_batch_size)
        peak = peak_memory(run.runtime.device) if self._memory_is_own and found else None
        return found | ({} if peak is None else {"memory": peak})

    def _keep_times(self, row: Row, num_steps: int) -> None:
        assert self.times is not None
        step_s, data_s, communication_s = (float(row[f"time/{key}_s"]) for key in ("step", "data", "communication"))
        self.times.add(num_steps=num_steps, step_s=step_s, data_s=data_s, communication_s=communication_s)

    def _begin_window(self, run: Run) -> None:
        self._data_s = 0.0
        self._window_start = replace(run.progress)

    def _row(self, run: Run, report: StepReport) -> Row:
        loss = report.mean_loss
        num_steps = report.step - self._window_start.step
        seconds = run.progress.train_s - self._window_start.train_s
        samples_per_s = (report.samples_seen - self._window_start.samples_seen) / seconds
        other_units = self._throughput.values(samples_per_s, num_devices=run.runtime.world_size)
        row: Row = {
            "train/loss": loss,
            "train/lr": report.taken.lr,
            "train/global_batch_size": report.plan.global_batch_size,
            "train/samples_per_s": samples_per_s,
            **{f"train/{name}": value for name, value in other_units.items()},
            "time/step_s": seconds / num_steps,
            "time/data_s": self._data_s / num_steps,
        }
        communication_s = 0.0 if report.timeline is None else report.timeline.exposed_s
        row["time/communication_s"] = communication_s
        row["time/compute_s"] = max((seconds - self._data_s) / num_steps - communication_s, 0.0)
        if (peak := peak_memory(run.runtime.device)) is not None:
            row["memory/peak_bytes"] = peak
        if report.grad_norm is not None:
            row["train/grad_norm"] = float(report.grad_norm)
        if run.scaled is not None:
            row |= {f"train/{name}": value for name, value in run.scaled.row_at(report.taken.samples_seen).items()}
        if run.guard is not None:
            row |= run.guard.counts.row()
        return row

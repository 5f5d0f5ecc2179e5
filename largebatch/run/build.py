"""From a prepared config to a run: joins the job, connects loader, trackers and observers, restores a checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from largebatch.data import EvaluationLoader
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.word_of_rank0 import calling_off
from largebatch.gradient.batch_stream import Loader
from largebatch.records.credentials import redacted
from largebatch.records.figures.run_metrics import is_drawn
from largebatch.records.graded_runs import MEASURED, PREDICTIONS, ends_of
from largebatch.records.rows.columns import Columns, read_columns
from largebatch.records.rows.row_file import read_lines
from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import JsonlTracker, Tracker
from largebatch.run.failures import keep_findings
from largebatch.run.forecast.forecast import Forecast, make_forecast
from largebatch.run.growth import decisions_of, go_on_as_decided
from largebatch.run.loading import evaluation_loaders
from largebatch.run.observers import Records, build_observers
from largebatch.run.parts import as_agreed, build_loader, build_run, open_runtime
from largebatch.run.plan_report import plan_record
from largebatch.run.precision.decisions import Decisions
from largebatch.run.prepare import Prepared
from largebatch.run.resume import begin, open_folder, record_start, run_identity
from largebatch.run.trackers import open_trackers, wandb_variables
from largebatch.run.trunk import Trunk
from largebatch.run.utilisation import Utilisation, utilisation_of
from largebatch.training.loop import Run
from largebatch.training.observers import (
    CheckpointObserver,
    CommunicationObserver,
    EvaluationObserver,
    GrowthObserver,
    MetricsObserver,
    NoiseScaleObserver,
    SkippedObserver,
    restore,
)
from largebatch.training.observers.own_state import load_own_states
from largebatch.training.observers.throughput import Throughput


@dataclass
class OpenRun:
    """A run with its folder, trackers and named observers, as `open_run` yields it."""

    run: Run
    decisions: Decisions
    folder: RunFolder
    trackers: list[Tracker]
    evaluation: EvaluationObserver
    checkpoints: CheckpointObserver
    noise_scale: NoiseScaleObserver | None
    communication: CommunicationObserver | None
    skipped: SkippedObserver | None
    metrics: MetricsObserver
    growth: GrowthObserver | None
    utilisation: Utilisation
    notes: list[str]
    trunk: Trunk | None = None
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def columns(self) -> Columns:
        """The columns of metrics.jsonl that figures need; empty before the first row."""
        return read_columns(self.folder.metrics, is_drawn) if self.folder.metrics.exists() else Columns()

    @property
    def problems(self) -> list[str]:
        """Problems that did not stop the run, except the trackers' own."""
        others = [one for one in (self.skipped, self.growth) if one is not None]
        return [*self.checkpoints.problems, *(line for one in others for line in one.problems)]

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint in the run's own folder: written by this process, or the one that it resumed from."""
        home, origin = self.folder.checkpoints, self.checkpoints.origin
        if self.checkpoints.latest is None and origin is not None and origin.resolve().is_relative_to(home.resolve()):
            return home / origin.resolve().relative_to(home.resolve())
        return self.checkpoints.latest

    def summary(self, status: str) -> dict[str, Any]:
        """The values of summary.json; `status` as `train` returns it."""
        progress, measured = self.run.progress, self.metrics.measured(self.run)
        grades = self.forecast.graded(measured | ends_of({**self.evaluation.last, "status": status}))
        return {
            "status": status,
            **({} if self.trunk is None else {"trunk": self.trunk.record()}),
            **({} if self.run.end_reason is None else {"end_reason": self.run.end_reason}),
            "steps": progress.step,
            "samples_seen": progress.samples_seen,
            "epochs": progress.samples_seen / self.evaluation.rows.num_samples,
            "train_seconds": progress.train_s,
            **self.metrics.overall(self.run),
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            **({} if self.checkpoints.unsaved is None else {"unsaved": self.checkpoints.unsaved}),
            **({} if self.run.guard is None else self.run.guard.counts.row()),
            **({} if self.growth is None else {"batch_decisions": [one.record() for one in self.growth.decisions]}),
            **({"evaluated_after_step": self.evaluation.last_step} if self.evaluation.last else {}),
            **self.evaluation.last,
            **{f"best/{name}": value for name, value in self.evaluation.best.items()},
            **({MEASURED: measured} if measured else {}),
            **({PREDICTIONS: grades} if grades else {}),
        }


@contextlib.contextmanager
def open_run(prepared: Prepared, stop: Callable[[], bool], overrides: Sequence[str]) -> Iterator[OpenRun]:
    """Join the job of the launcher, yield the run ready to train, and leave the job.

    Workers that load data start first: a fork of a process with the threads of a process group or a GPU can hang.

    Raises:
        LauncherError: if ranks are missing, launcher and accelerate disagree, the ranks are not the same run, or
            the folder cannot be written to or another process writes to it.
        CheckpointError: if the run to resume has no usable checkpoint, or was another run. The folder is unchanged.
    """
    config, feeds_gpu = prepared.config, torch.cuda.is_available()
    train_plain, validation = prepared.train_plain, prepared.validation
    with (
        contextlib.closing(build_loader(prepared, int(os.environ.get("RANK", "0")), feeds_gpu=feeds_gpu)) as loader,
        evaluation_loaders(config, train_plain, validation, feeds_gpu=feeds_gpu, augment=prepared.augment) as evaluated,
        contextlib.ExitStack() as stack,
    ):
        with calling_off(os.environ, redacted):
            loader.start()
            for one in evaluated.values():
                one.start()
        runtime = stack.enter_context(open_runtime(prepared))
        assert loader.rank == runtime.rank
        prepared = as_agreed(prepared, runtime)
        prepared.place_losses(runtime.device)
        folder, notes = open_folder(config, runtime, stack)
        keep_findings(runtime, folder)
        identity = run_identity(prepared)
        start = begin(prepared, folder, runtime, identity)
        prepared = go_on_as_decided(prepared, start.checkpoint, loader)
        is_over = start.step >= prepared.numbers.num_steps
        forecast = make_forecast(prepared, folder.path, is_over=is_over) if runtime.is_main else Forecast()
        plan = plan_record(prepared, decisions_of(start.checkpoint)) | forecast.plan_entries()
        notes += record_start(folder, start, runtime, config=prepared.public, overrides=overrides, plan=plan)
        trackers = open_trackers(prepared, folder, start, stack) if runtime.is_main else []
        opened = _connect(prepared, runtime, folder, trackers, Records(runtime), identity, loader, evaluated, stop)
        for rows in (one for one in opened.trackers if isinstance(one, JsonlTracker)):
            folder.come_back.append(rows.come_back)
            folder.force.append(rows.force)
        opened.forecast = forecast
        opened.notes += [*prepared.notes, *notes, *start.notes, *wandb_variables(opened.trackers), *forecast.notes()]
        if (checkpoint := start.checkpoint) is not None:
            opened.checkpoints.changed_options = changed = start.changed_options(prepared.scaled_groups)
            opened.notes += restore(opened.run, checkpoint, changed_options=changed)
            opened.notes += load_own_states(runtime, prepared.own_observers, checkpoint)
            opened.checkpoints.origin = checkpoint.path
            opened.evaluation.is_owed = checkpoint.values.get("evaluation_owed", False)
            lines = read_lines(folder.metrics) if folder.metrics.exists() else ()
            opened.evaluation.recall(runtime, (line.row for line in lines if line.row is not None))
        yield opened


def _connect(
    prepared: Prepared,
    runtime: Runtime,
    folder: RunFolder,
    trackers: list[Tracker],
    records: Records,
    identity: dict[str, Any],
    loader: Loader,
    evaluated: dict[str, EvaluationLoader],
    stop: Callable[[], bool],
) -> OpenRun:
    # Every rank gets here, but only rank 0 counts operations: it alone has rows and a summary.
    utilisation = utilisation_of(prepared) if runtime.is_main else Utilisation(Throughput())
    watch = build_observers(prepared, folder, trackers, records, identity, evaluated, utilisation.throughput)
    run = build_run(
        prepared,
        runtime,
        loader,
        observers=watch.observers,
        stop_requested=stop,
        save_requested=lambda: watch.checkpoints.clock.is_due(),
        roll_back=watch.checkpoints.roll_back,
        rows=watch.rows,
    )
    every_tracker = [*trackers, *records.trackers]
    named = watch.evaluation, watch.checkpoints, watch.noise_scale, watch.communication, watch.skipped, watch.metrics
    trunk = prepared.numbers.trunk
    return OpenRun(
        run, prepared.decisions, folder, every_tracker, *named, watch.growth, utilisation, notes=[], trunk=trunk
    )

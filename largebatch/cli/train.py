"""`largebatch train`: makes one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_UNSAVED, code_of

if TYPE_CHECKING:
    from pathlib import Path

    from largebatch.records.rows.columns import Columns
    from largebatch.records.run_folder import RunFolder
    from largebatch.run.build import OpenRun
    from largebatch.run.prepare import Prepared
    from largebatch.run.train_quietly import Trained

_MOST_LAYER_ROWS = 2000  # the figure of the layers has half as many pixels


def main(arguments: Sequence[str]) -> int:
    """Compose, check, train; returns the exit code."""
    return run_verb("train", run, arguments)


def run(config: DictConfig, overrides: list[str]) -> int:
    """Train the composed config on the ranks of the launcher; returns the exit code."""
    trained, signal_name = train_config(config, overrides)
    if "unsaved" in trained.summary:
        return EXIT_UNSAVED
    return {"finished": EXIT_DONE, "diverged": EXIT_FAILED, "stopped": code_of(signal_name)}[trained.status]


def train_config(config: DictConfig, overrides: list[str]) -> tuple[Trained, str | None]:
    """Train the composed config on the ranks of the launcher.

    Returns:
        the run, and the signal that has stopped it, if this rank got one.

    Raises:
        ConfigError, LauncherError, CheckpointError, RunFailedError: see `open_run` and `naming_failures`.
    """
    import os

    from largebatch.distributed.launcher_environment import restart_problem
    from largebatch.distributed.signals import StopRequest
    from largebatch.run.build import open_run
    from largebatch.run.config.reading import ConfigError
    from largebatch.run.prepare import prepare
    from largebatch.run.train_quietly import Trained

    if problem := restart_problem(os.environ, resume=str(config.resume)):
        raise ConfigError([problem])
    prepared, stop = prepare(config, os.environ, joins=True), StopRequest()
    with open_run(prepared, stop, overrides) as opened, stop:
        if opened.run.runtime.is_main:
            _print_start(prepared, opened)
        status = _train(prepared, opened)
        return Trained(status, opened.summary(status), opened.folder.path, opened.run.module), stop.signal_name


def _train(prepared: Prepared, opened: OpenRun) -> str:
    """Train and conclude, unless the run has finished before; returns the status."""
    from largebatch.distributed.lost_ranks import naming_lost_ranks
    from largebatch.run.failures import naming_failures
    from largebatch.training.loop import train

    is_main = opened.run.runtime.is_main
    if opened.run.progress.step >= opened.run.steps.num_steps and not opened.evaluation.is_owed:
        if is_main:
            print(f"already finished: {opened.run.progress.step} steps, {opened.folder.path}")
            if _lacks_summary(opened):
                _conclude(opened, "finished", hint=None, draws=prepared.config.logger.plots)
        return "finished"
    lost = naming_lost_ranks(opened.run.runtime, lambda: f"step {opened.run.steps.number}")
    with naming_failures(opened.run, opened.folder), lost:
        status = train(opened.run)
    if is_main:
        hint = _remedy(prepared, opened) if status == "diverged" else None
        _conclude(opened, status, hint=hint, draws=prepared.config.logger.plots)
    return status


def _lacks_summary(opened: OpenRun) -> bool:
    """Whether the process was killed between its last checkpoint and summary.json."""
    from largebatch.records.report.run_files import read_json

    if opened.checkpoint is None:
        return False  # the run ended in another folder
    try:
        summary = read_json(opened.folder.summary)
        return (summary["status"], summary["steps"]) != ("finished", opened.run.progress.step)
    except (OSError, ValueError, KeyError):
        return True


def _print_start(prepared: Prepared, opened: OpenRun) -> None:
    """Print the plan as a table, then the notes of the start."""
    import os

    from largebatch.distributed.launcher_environment import restart_note
    from largebatch.records.trackers import print_plan
    from largebatch.run.loading import prefetch_rows
    from largebatch.run.method_rows import method_rows
    from largebatch.run.plan_report import checkpoint_row, plan_rows, reduction_rows
    from largebatch.run.precision.decisions import decision_rows

    runtime, config = opened.run.runtime, prepared.config
    parameters = [parameter for group in opened.run.optimizer.param_groups for parameter in group["params"]]
    decaying, adapting = (
        sum(len(group["params"]) for group in opened.run.optimizer.param_groups if group.get(flag))
        for flag in ("decays", "adapts")
    )
    rows = [
        ("device", runtime.device.type, opened.decisions.device.name),
        *decision_rows(opened.decisions),
        *prefetch_rows(prepared),
        (
            "model",
            f"{sum(parameter.numel() for parameter in parameters):,} parameters",
            f"{config.model['_target_']}; of {len(parameters)} tensors {decaying} decay, {adapting} adapt",
        ),
        ("optimizer", config.optimizer["_target_"].rpartition(".")[2], "optimizer"),
        *plan_rows(prepared.numbers, opened.run.optimizer),
        *([] if opened.utilisation.row is None else [opened.utilisation.row]),
        *method_rows(prepared),
        *reduction_rows(config, runtime.world_size),
        checkpoint_row(config, opened.run.module),
        ("run folder", str(opened.folder.path), "run.dir" if config.run.dir else "run.root"),
    ]
    print_plan(rows)
    restarted = restart_note(os.environ, resume=config.resume)
    for note in [*opened.notes, *([restarted] if restarted else [])]:
        print(note)


def _remedy(prepared: Prepared, opened: OpenRun) -> str:
    """The remedy for a run that diverged: repair bad samples among the last ones; without any, a lower rate."""
    import numpy as np

    from largebatch.data.iterables import stream_of
    from largebatch.run.failures import samples_without_numbers
    from largebatch.run.sample_order import sample_order

    config, run = prepared.config, opened.run
    if run.guard is None and stream_of(prepared.train) is None:  # a stream would be read from its start
        first = _last_finite(opened.folder)
        ids = sample_order(config, prepared.train).ids_at(np.arange(first, run.progress.samples_seen))
        if bad := samples_without_numbers(prepared.train, ids, seed=config.seed):
            shown = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if bad[8:] else "")
            return (
                f"these of the last samples hold NaN or infinity: {shown}. Repair or remove them, or skip bad samples: "
                "data.on_bad_sample=skip"
            )
    gave_up = run.guard is not None and run.guard.gives_up
    fact = "too many bad steps in a row, see guard" if gave_up else "the loss is NaN or infinite"
    return f"{fact}: lower the peak rate, warm up longer, or set clip_norm=1"


def _last_finite(folder: RunFolder) -> int:
    """Samples seen at the last row with a finite loss; 0 if there is none."""
    from largebatch.records.rows.placed_rows import Faults, number, placed_rows

    if not folder.metrics.exists():
        return 0
    losses = ((samples, number(row.get("train/loss"))) for _, samples, _, row in placed_rows(folder.metrics, Faults()))
    return int(max((samples for samples, loss in losses if loss is not None and math.isfinite(loss)), default=0))


def _conclude(opened: OpenRun, status: str, *, hint: str | None, draws: bool) -> None:
    """Draw the figures, close the trackers, write and print the summary."""
    from largebatch.records.figures.draw_plotly import plotly_figure
    from largebatch.records.figures.run_figures import run_figures
    from largebatch.records.trackers import WandbTracker, print_summary
    from largebatch.run.summary_rows import next_commands, summary_rows

    columns = opened.columns
    summary = opened.summary(status)
    problems = opened.problems
    plots = _plot(opened.folder, columns, problems) if draws else []
    for tracker in opened.trackers:
        if isinstance(tracker, WandbTracker):
            drawn = [figure for figures in run_figures(columns).values() for figure in figures]
            tracker.show({f"charts/{figure.name}": plotly_figure(figure) for figure in drawn})
        tracker.finish(summary, plots)
        problems += tracker.problems
    opened.folder.write_summary(summary, problems)
    print_summary(
        summary_rows(opened, summary, hint),
        opened.folder.path,
        plots,
        problems=problems,
        commands=next_commands(opened, status),
    )


def _plot(folder: RunFolder, columns: Columns, problems: list[str]) -> list[Path]:
    """Draw the figures of a run. An error becomes a problem of the summary: figures must not cost the numbers."""
    from largebatch.records.figures.draw_png import draw_png
    from largebatch.records.figures.layer_maps import layer_maps
    from largebatch.records.figures.run_figures import draw_run
    from largebatch.records.rows.placed_rows import Faults, spread_rows

    title = folder.path.name
    try:
        plots = draw_run(columns, folder.plots, title=title)
        if folder.layers.exists():
            rows = list(spread_rows(folder.layers, _MOST_LAYER_ROWS, Faults()))
            plots += [draw_png(one, folder.plots) for one in layer_maps(rows, title=title)]
    except Exception as error:
        problems.append(f"plots were not written: {type(error).__name__}: {error}")
        return []
    return plots

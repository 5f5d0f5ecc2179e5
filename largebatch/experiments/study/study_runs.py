"""Plans the cells of a study, and makes the runs that are still missing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from largebatch.experiments.study.journal import Journal
from largebatch.experiments.study.protocol import Cell, Job, Row, next_job
from largebatch.experiments.study.search import draw_settings
from largebatch.experiments.study.settings import StudyConfig
from largebatch.experiments.study.trial import config_of, run_job
from largebatch.experiments.study.workers import run_here, run_side_by_side
from largebatch.run.config.reading import ConfigError, parse_config, public_values
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import number_format
from largebatch.run.prepare import prepare

# Sections that are not compared, or that the study sets.
_LOCAL = ("run", "logger", "launcher", "seed", "batch", "cost")
# Keys that change last digits at most, or act on several ranks only. Studies that began before these keys go on.
_LAST_DIGITS = (
    ("precision", "deterministic"),
    ("precision", "channels_last"),
    ("precision", "powersgd"),
    ("precision", "bucket_mb"),
    ("precision", "peak_tflops"),
    ("data", "prefetch"),
    ("loss", "logits_at_once"),
    ("observers", "noise_scale", "geometry"),  # acts on rows alone
)

_DECIDES = (
    "batch.ramp.by=noise_scale: a study counts the steps of each batch size, and such a run decides on its batches "
    "itself. Leave batch.ramp out."
)


def plan_cells(configs: Mapping[str, DictConfig], study: StudyConfig) -> list[Cell]:
    """Every optimizer at every batch size, checked: each is prepared once, as its runs will be.

    Args:
        configs: of `largebatch train`, by optimizer.
        study: the section `study`.

    Raises:
        ConfigError: with the problems of all of them.
    """
    cells, errors = [], []
    for name, config in configs.items():
        if parse_config(config).batch.ramp.by == "noise_scale":
            errors.append(f"{name}: {_DECIDES}")
            continue
        ranges = study.ranges(name)
        settings = tuple(draw_settings(ranges, study.trials, seed=study.draw_seed))
        first = parse_config(config).seed
        for size in study.batch_sizes:
            cell = Cell(name, size, settings, tuple(range(first + 1, first + 1 + study.seeds)), first, 1, ranges)
            try:
                steps = prepare(config_of(Job(cell, 0, first, None), config), os.environ).numbers.num_steps
            except ConfigError as error:
                errors += [f"{name} at batch {size}: {line}" for line in error.errors]
                continue
            cells.append(Cell(name, size, settings, cell.seeds, first, steps, ranges))
    if errors:
        raise ConfigError(errors)
    return cells


def identity_of(configs: Mapping[str, DictConfig], study: StudyConfig) -> dict[str, Any]:
    """The settings that must not change during a study; see `require_same_study`."""
    asked = study.model_dump(include={"target", "resolution", "hopeless", "draw_seed"})
    optimizers = {}
    for name, config in configs.items():
        ranges = {key: one.model_dump() for key, one in study.ranges(name).items()}
        optimizers[name] = _compared(config) | {"study": {"search": {name: ranges}}}
    return {"trials": study.trials, "study": {"study": asked}, "optimizers": optimizers}


def _compared(config: DictConfig) -> dict[str, Any]:
    """The config as it is compared, with the number format of this device: shares of a study may run on others."""
    parsed = parse_config(config)
    public = {key: value for key, value in public_values(config).items() if key not in _LOCAL}
    for *sections, key in _LAST_DIGITS:
        functools.reduce(dict.__getitem__, sections, public).pop(key, None)
    public["precision"]["compute"] = number_format(Device.own(), parsed.precision).value
    return public | {"seed": parsed.seed}


def make_runs(
    cells: Sequence[Cell],
    configs: Mapping[str, DictConfig],
    study: StudyConfig,
    journal: Journal,
    *,
    stop: Callable[[], bool],
    on_row: Callable[[Row], None],
) -> None:
    """Make the missing runs of this process's share of the cells, until none is left or a stop is asked for."""
    own = cells[study.share :: study.shares]
    rows = journal.rows()
    work = partial(_work, dict(configs), study, journal.folder)

    def following(running: list[str]) -> Job | None:
        return next_job(own, rows, running)

    if study.workers == 1:
        finished = run_here(work, following, stop)
    else:
        finished = run_side_by_side(work, following, stop, workers=study.workers)
    for row in finished:
        rows.append(row)
        journal.append(row)
        on_row(row)


def _work(
    configs: dict[str, DictConfig], study: StudyConfig, folder: Path, job: Job, stop: Callable[[], bool]
) -> Row | None:
    return run_job(job, configs[job.cell.optimizer], study, folder, stop)

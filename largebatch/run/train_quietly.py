"""Trains a config without output: the building block of studies with many runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import Row, read_metrics
from largebatch.run.build import open_run
from largebatch.run.failures import naming_failures
from largebatch.run.prepare import prepare
from largebatch.training.loop import Observer, train

_SILENCE = {
    "observers.progress": False,
    "observers.stragglers.ratio": None,
    "logger.wandb.mode": "disabled",
    "logger.tensorboard": False,
    "logger.mlflow.enabled": False,
    "logger.trackio.enabled": False,
}


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
        status: as `train` returns it: finished, diverged, or stopped.
        summary: as in summary.json.
        folder: of the run, with its files; `train_quietly` leaves out the plots.
        model: with its last weights, without a distributed wrapper.
    """

    status: str
    summary: dict[str, Any]
    folder: Path
    model: nn.Module = field(repr=False)

    @cached_property
    def rows(self) -> list[Row]:
        """All rows of metrics.jsonl; empty if the run was stopped before its first row."""
        metrics = RunFolder(self.folder).metrics
        return read_metrics(metrics) if metrics.exists() else []


def train_quietly(
    config: DictConfig,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train on the ranks of this launcher, silently; the config is not changed.

    Args:
        config: of `largebatch train`, composed.
        folder: of the run: where its config, plan, metrics, checkpoints and summary go.
        overrides: what to write into overrides.txt; the config has them already.
        observers: called after those of the config.
        stop: whether the run was asked to end after the step; see `make_run`.

    Raises:
        ConfigError: with all errors, before anything is written.
    """
    config = OmegaConf.create(config)
    with open_dict(config):
        for key, value in _SILENCE.items():
            OmegaConf.update(config, key, value)
        OmegaConf.update(config, "run.dir", str(folder))
    prepared = prepare(config, os.environ, joins=True)
    with open_run(prepared, stop, overrides) as opened:
        opened.run = replace(opened.run, observers=[*opened.run.observers, *observers])
        with naming_failures(opened.run, opened.folder):
            status = train(opened.run)
        summary = opened.summary(status)
        if opened.run.runtime.is_main:
            for tracker in opened.trackers:
                tracker.finish(summary, [])
            problems = [*opened.problems, *(line for one in opened.trackers for line in one.problems)]
            opened.folder.write_summary(summary, problems)
        opened.run.runtime.barrier()  # rank 0 has written before another reads
        return Trained(status, summary, opened.folder.path, opened.run.module)

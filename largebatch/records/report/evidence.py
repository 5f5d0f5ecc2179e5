"""The input of a report: runs, and the records of measurements, comparisons, studies and experiments."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.run_metrics import KEYS, NOISE_SCALE
from largebatch.records.report.task_names import optimizer_of, shortened, task_of
from largebatch.records.result import Result
from largebatch.records.rows.columns import Column, Columns
from largebatch.records.rows.row_file import Row

# What differs between replicates, or follows from the batch size and the machine.
EXPECTED = ("seed", "run.", "batch.", "launcher.", "logger.", "observers.", "resume", "cost.")
# The columns of metrics.jsonl that the page uses: others, however many, are not kept.
OPTIMIZER_NOISE = tuple(f"noise_scale/optimizer/{end}" for end in ("b_simple", "ci_low", "ci_high"))
COLUMNS = KEYS | {"memory/peak_bytes", "eval/val_accuracy_stderr", "noise_scale/trace", *OPTIMIZER_NOISE}
_END = 0.9  # of the samples that the noise was measured over: what follows is the end
MOST_LAYER_ROWS, MOST_LAYERS = 120, 1000  # of maps of layers


@dataclass(frozen=True)
class RunRecord:
    """A run of `largebatch train`, read from its folder.

    Attributes:
        folder: the run's.
        name: unique on the page.
        plan: the values of plan.json.
        settings: dotted key of config.yaml -> its value as a text.
        summary: the values of summary.json; empty while the run goes on, or where it was killed.
        metrics: `COLUMNS` of metrics.jsonl.
        layers: rows of layers.jsonl, at most `MOST_LAYER_ROWS`; empty without it.
        damage: the unusable parts of the folder, one clause per kind.
        is_compared: whether the verdict compares it; an experiment of the textbook tells of its runs itself.
        study: name of the study that chose its settings and whose target ended it; empty: there is none.
    """

    folder: Path
    name: str
    plan: dict[str, Any]
    settings: dict[str, str]
    summary: dict[str, Any]
    metrics: Columns
    layers: Sequence[Row] = ()
    damage: Sequence[str] = ()
    is_compared: bool = True
    study: str = ""

    @property
    def global_batch_size(self) -> int:
        """In samples; the first one of a run that changes its batch."""
        return int(self.plan["global_batch_size"])

    @property
    def is_ramped(self) -> bool:
        """Whether the batch changes over the run, which then belongs to no batch size."""
        return bool(self.plan.get("ramp"))

    @property
    def num_samples(self) -> int | None:
        """Samples of the training set."""
        return self.plan.get("num_samples")

    @property
    def world_size(self) -> int:
        """Processes."""
        return int(self.plan.get("world_size", 1))

    @property
    def micro_batch_size(self) -> int | None:
        """The most samples of one forward pass; None: not known."""
        per_rank = -(-self.global_batch_size // self.world_size)
        most = self.plan.get("max_micro_batch_size")
        accumulated = self.plan.get("grad_accum_steps")
        if most is None and accumulated is None:
            return None
        return min(int(most or per_rank), -(-per_rank // int(accumulated or 1)))

    @property
    def optimizer(self) -> str:
        """Its name for people."""
        return optimizer_of(self.settings)

    @property
    def task(self) -> str:
        """Data set and model: runs of different tasks are not compared."""
        return task_of(self.settings)

    @property
    def experiment(self) -> str:
        """The task; a study's runs, which end at its target, are not compared with others of the task."""
        return f"{self.task}, to the target of {self.study}" if self.study else self.task

    @property
    def status(self) -> str:
        """The status of the summary; without one the run goes on, or was killed."""
        return shortened(str(self.summary.get("status", "unfinished")))

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.metrics.steps

    @property
    def samples_seen(self) -> int:
        """Training samples so far, repetitions counted."""
        return self.metrics.samples_seen

    @cached_property
    def step_s(self) -> float | None:
        """Median time of a step, in seconds; the first row, which pays for warming up, does not count.

        Of a long run it is the median of every n-th row; see `rows.columns`.
        """
        times = [value for value in self.column("time/step_s").values.tolist() if math.isfinite(value)]
        return statistics.median(times[1:] or times) if times else None

    @property
    def is_gap_augmented(self) -> bool:
        """Whether an evaluation read a set that augments by itself, which changes the meaning of the gap."""
        return self.metrics.is_gap_augmented

    def column(self, key: str) -> Column:
        """A metric over the run, one of `COLUMNS`; without entries where there is no finite value."""
        assert key in COLUMNS, f"{key} is not among the columns that the report reads"
        return self.metrics.column(key)

    def last(self, key: str) -> float | None:
        """The last finite value of a metric; None where there is none."""
        assert key in COLUMNS, f"{key} is not among the columns that the report reads"
        return self.metrics.last.get(key)

    @property
    def noise_scale(self) -> Interval | None:
        """The gradient noise scale at the end, in samples; None if it has no interval there."""
        return self._noise_at_end(NOISE_SCALE.keys)

    @property
    def optimizer_noise_scale(self) -> Interval | None:
        """The same in the optimizer's geometry."""
        return self._noise_at_end(OPTIMIZER_NOISE)

    def _noise_at_end(self, keys: Sequence[str]) -> Interval | None:
        """One that was known early and lost its interval is that of other weights: it grows as the loss falls."""
        value, low, high = map(self.last, keys)
        if value is None or low is None or high is None:
            return None
        known, measured = (self.column(key).samples for key in (keys[0], "noise_scale/trace"))
        if len(measured) and known[-1] < _END * measured[-1]:
            return None
        return Interval(value, low, high)

    def series(self, key: str, against: str = "samples_seen") -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the rows that have `key`, ascending in x; empty where there is no finite value."""
        column = self.column(key)
        if against == "samples_seen":
            return column.samples, column.values
        order = np.argsort(column.steps, kind="stable")
        return column.steps[order], column.values[order]

    def has(self, key: str) -> bool:
        """Whether any value of `key` can be drawn."""
        return self.metrics.has(key)


@dataclass(frozen=True)
class JsonRecord:
    """A measurement, comparison, study, learning-rate search or experiment.

    Attributes:
        path: the file.
        name: unique among its kind on the page.
        result: its content.
        checkpoint: whose weights were measured, as the file says; None: it does not.
        settings: dotted key of the config in the file -> its value as a text; empty: it has none.
    """

    path: Path
    name: str
    result: Result
    checkpoint: object = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A folder that gave nothing, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Evidence:
    """Everything that was found.

    Attributes:
        runs: ascending in batch size.
        records: kind, of `records.result.FILES` -> its records.
        left_out: folders and files that could not be used.
        num_trials: runs below a study that it tried and did not choose: part of the study, not of the comparison.
    """

    runs: Sequence[RunRecord]
    records: dict[str, list[JsonRecord]] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()
    num_trials: int = 0

    @property
    def compared(self) -> list[RunRecord]:
        """The runs that the verdict and the figures over runs are about."""
        return [run for run in self.runs if run.is_compared]

    def of(self, kind: str) -> list[JsonRecord]:
        """The records of a kind."""
        return self.records.get(kind, [])

    @property
    def damaged(self) -> list[LeftOut]:
        """The runs that are shown in part, each with its faults."""
        return [LeftOut(run.folder, "; ".join(run.damage)) for run in self.runs if run.damage]

    @property
    def paths(self) -> list[Path]:
        """Folder of every run, file of every record."""
        return [*(run.folder for run in self.runs), *(one.path for found in self.records.values() for one in found)]

    def only(self, paths: Collection[Path]) -> Evidence:
        """The same with those runs and records alone."""
        kept = {kind: [one for one in found if one.path in paths] for kind, found in self.records.items()}
        return replace(self, runs=[run for run in self.runs if run.folder in paths], records=kept)

    def without(self, broken: Sequence[LeftOut]) -> Evidence:
        """The same with runs and records left out that cannot be shown."""
        kept = self.only(set(self.paths) - {one.path for one in broken})
        return replace(kept, left_out=(*self.left_out, *broken))

    def __bool__(self) -> bool:
        return bool(self.runs or any(self.records.values()))


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which runs differ besides batch, seed and their consequences."""
    keys = sorted({key for one in settings for key in one if not key.startswith(EXPECTED)})
    return [key for key in keys if len({one.get(key) for one in settings}) > 1]

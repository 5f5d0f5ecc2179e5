"""What a report is made of: runs, and the records of measurements, comparisons, studies and experiments."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.trackers.series import series
from largebatch.trackers.tracker import Row

# What differs between replicates, or follows from the batch size and the machine.
EXPECTED = ("seed", "run.", "batch.", "launcher.", "logger.", "observers.", "resume")


@dataclass(frozen=True)
class RunRecord:
    """A run of `largebatch train`, as its folder tells it.

    Attributes:
        folder: of the run.
        name: unique on the page.
        plan: of plan.json.
        settings: dotted key of config.yaml -> its value as a text.
        summary: of summary.json; empty while the run is going on, or where it was killed.
        rows: of metrics.jsonl.
        layers: of layers.jsonl; empty without it.
        is_compared: whether the verdict compares it; an experiment of the chapter tells of its runs itself.
    """

    folder: Path
    name: str
    plan: dict[str, Any]
    settings: dict[str, str]
    summary: dict[str, Any]
    rows: Sequence[Row]
    layers: Sequence[Row] = ()
    is_compared: bool = True

    @property
    def global_batch_size(self) -> int:
        """In samples; of a run that changes its batch the first."""
        return int(self.plan["global_batch_size"])

    @property
    def is_ramped(self) -> bool:
        """Whether the batch changes over the run, which then belongs to no batch size."""
        return bool(self.plan.get("ramp"))

    @property
    def num_samples(self) -> int | None:
        """Of the training set."""
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
        """Its name."""
        return self.settings.get("optimizer._target_", "unknown optimizer").rpartition(".")[2]

    @property
    def task(self) -> str:
        """Data set and model: runs of different tasks are not compared."""
        data = self.settings.get("data.name") or self.settings.get("data.validation._target_", "unknown data")
        model = self.settings.get("model._target_", "unknown model").rpartition(".")[2]
        return f"{data}, {model}"

    @property
    def status(self) -> str:
        """As in the summary; without one the run is going on, or was killed."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return int(max((float(row.get("step", 0)) for row in self.rows), default=0))

    @property
    def samples_seen(self) -> int:
        """Training samples so far, repetitions counted."""
        return int(max((float(row.get("samples_seen", 0)) for row in self.rows), default=0))

    @cached_property
    def step_s(self) -> float | None:
        """Median time of a step, in seconds; the first row, which pays for warming up, does not count."""
        times = [float(row["time/step_s"]) for row in self.rows if "time/step_s" in row]
        return statistics.median(times[1:] or times) if times else None

    @cached_property
    def _last(self) -> dict[str, float]:
        """Of every key at once: a search per key would read all rows of every run a dozen times."""
        found: dict[str, float] = {}
        for row in self.rows:
            for key, value in row.items():
                if isinstance(value, (int, float)) and abs(value) < float("inf"):  # NaN is not below
                    found[key] = float(value)
        return found

    @cached_property
    def _columns(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        return {}

    def last(self, key: str) -> float | None:
        """The last finite value of a metric; None where there is none."""
        return self._last.get(key)

    def series(self, key: str, against: str = "samples_seen") -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the rows that have `key`, as of `trackers.series`; empty where there is no finite value."""
        if key not in self._last:
            return np.empty(0), np.empty(0)
        if (key, against) not in self._columns:
            self._columns[key, against] = series(self.rows, key, against)
        return self._columns[key, against]

    def has(self, key: str) -> bool:
        """Whether any value of `key` can be drawn."""
        return key in self._last


@dataclass(frozen=True)
class JsonRecord:
    """A measurement, comparison, study, learning-rate search or experiment: the file as it is.

    Attributes:
        path: of the file.
        name: unique among its kind on the page.
        values: its content.
    """

    path: Path
    name: str
    values: dict[str, Any]


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
        records: kind (`variance`, `gap`, `communication`, `sharpness`, `comparison`, `study`, `find_lr`, `chapter`) ->
            its records.
        left_out: what could not be used.
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

    def without(self, broken: Sequence[LeftOut]) -> Evidence:
        """The same with records left out that turned out to be none."""
        paths = {one.path for one in broken}
        kept = {kind: [one for one in found if one.path not in paths] for kind, found in self.records.items()}
        return replace(self, records=kept, left_out=(*self.left_out, *broken))

    def __bool__(self) -> bool:
        return bool(self.runs or any(self.records.values()))


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Keys in which runs differ besides batch, seed and what follows from them."""
    keys = sorted({key for one in settings for key in one if not key.startswith(EXPECTED)})
    return [key for key in keys if len({one.get(key) for one in settings}) > 1]

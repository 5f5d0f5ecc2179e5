"""Runs that differ in their seed alone, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.records.trackers import Row
from largebatch.run.train_quietly import Trained

Number = TypeVar("Number", int, float)


class Curve(NamedTuple):
    """Values [seeds, n] at samples seen [n]."""

    samples: Float64Array
    values: Float64Array


@dataclass(frozen=True)
class Outcome:
    """Runs that differ in their seed alone.

    Attributes:
        statuses: one per run, see `Trained.status`.
        summaries: one per run.
        rows: metrics.jsonl of each run.
    """

    statuses: Sequence[str]
    summaries: Sequence[Row]
    rows: Sequence[Sequence[Row]]

    def final(self, key: str) -> Float64Array:
        """The last value that each run logged, [seeds]: NaN for a run that diverged or never logged it."""
        return np.array([self._final(number, key) for number in range(len(self.rows))])

    def curve(self, key: str) -> Curve:
        """All values that the runs logged, as far as the shortest of them reaches."""
        found = [[(row["samples_seen"], row[key]) for row in rows if key in row] for rows in self.rows]
        length = min(map(len, found))
        table = np.array([one[:length] for one in found], dtype=np.float64).reshape(len(found), length, 2)
        return Curve(table[0, :, 0], table[:, :, 1])

    def _final(self, number: int, key: str) -> float:
        values = [row[key] for row in self.rows[number] if key in row]
        value = self.summaries[number].get(key, values[-1] if values else None)
        return math.nan if value is None or self.statuses[number] == "diverged" else float(value)


def rising(values: list[Number]) -> list[Number]:
    """The values of a setting, unless they fail to rise; raises ValueError.

    >>> rising([1, 2, 4])
    [1, 2, 4]
    """
    if values != sorted(set(values)):
        raise ValueError("values must rise from one to the next. Sort them, and name each once.")
    return values


def train_seeds(experiment: Experiment, name: str, *overrides: str, seeds: Sequence[int]) -> Outcome:
    """Train runs NAME-SEED, one per seed of `seeds`, each counted from the config's own."""
    trained: list[Trained] = [
        experiment.train(f"{name}-{seed}", *overrides, f"seed={experiment.config.seed + seed}") for seed in seeds
    ]
    return Outcome([run.status for run in trained], [run.summary for run in trained], [run.rows for run in trained])


def finals(outcomes: Sequence[Outcome], key: str) -> Float64Array:
    """`Outcome.final` of several, [seeds, outcomes]."""
    return np.stack([outcome.final(key) for outcome in outcomes], axis=1)

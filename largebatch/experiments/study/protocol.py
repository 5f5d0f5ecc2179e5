"""The protocol of a study, without any training: the next run to make, and the point that finished runs give.

For every optimizer and batch size (a cell) the same settings are tried on one seed. The one that reaches the target in
the fewest steps then runs on fresh seeds, and only those runs count: the steps of the tuning were selected for their
luck. Protocol of Shallue et al. 2019, with fresh seeds and early stopping of what cannot win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.intervals import Interval
from largebatch.experiments.study.points import StudyPoint
from largebatch.experiments.study.search import Setting, borders
from largebatch.experiments.study.settings import RangeConfig

Row = dict[str, Any]  # of trials.jsonl
REACHED = "reached"


@dataclass(frozen=True)
class Cell:
    """One optimizer at one batch size.

    Attributes:
        optimizer: choice of its group.
        batch_size: B, in samples.
        settings: tried in this order.
        seeds: of the runs that count; the tuning seed is not among them.
        tuning_seed: the seed of all trials.
        budget_steps: the most steps of a run.
        ranges: the search ranges.
    """

    optimizer: str
    batch_size: int
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    tuning_seed: int
    budget_steps: int
    ranges: dict[str, RangeConfig]

    @property
    def name(self) -> str:
        """The name in folders and messages."""
        return f"{self.optimizer}_b{self.batch_size}"


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        cell: its optimizer and batch size.
        number: the index of its setting.
        seed: its seed.
        beaten_at: steps at which it can no longer win; None: it runs to the end of the budget.
    """

    cell: Cell
    number: int
    seed: int
    beaten_at: int | None

    @property
    def is_tuning(self) -> bool:
        """Whether the run belongs to the tuning."""
        return self.seed == self.cell.tuning_seed

    @property
    def name(self) -> str:
        """Unique in the study."""
        return f"{self.cell.name}_t{self.number}_s{self.seed}"

    @property
    def setting(self) -> Setting:
        """The values that the run sets."""
        return self.cell.settings[self.number]


def next_job(cells: Sequence[Cell], rows: Sequence[Row], running: Sequence[str]) -> Job | None:
    """The first run that is neither finished nor running; None if all that are left wait for running ones, or none is.

    Args:
        cells: all cells of the study, or of a share.
        rows: of finished runs.
        running: names of jobs that others work on.
    """
    taken = {row["id"] for row in rows} | set(running)
    for cell in cells:
        best = best_trial(cell, rows)
        beaten_at = None if best is None else int(best["steps"])
        tuning = [Job(cell, number, cell.tuning_seed, beaten_at) for number in range(len(cell.settings))]
        if open_ := [job for job in tuning if job.name not in taken]:
            return open_[0]
        if best is None or any(job.name in running for job in tuning):
            continue  # the best is not known yet, or there is none
        final = [Job(cell, best["number"], seed, None) for seed in cell.seeds]
        if open_ := [job for job in final if job.name not in taken]:
            return open_[0]
    return None


def best_trial(cell: Cell, rows: Sequence[Row]) -> Row | None:
    """The trial with the fewest steps to the target, of equal ones the first; None if none reached it."""
    reached = [row for row in _tuning(cell, rows) if row["status"] == REACHED]
    return min(reached, key=lambda row: (row["steps"], row["number"]), default=None)


def is_done(cells: Sequence[Cell], rows: Sequence[Row]) -> bool:
    """Whether nothing is left to run."""
    return next_job(cells, rows, ()) is None


def point_of(cell: Cell, rows: Sequence[Row]) -> StudyPoint:
    """The point that the finished runs of a cell give.

    A run that missed the target, for whatever reason, is censored at the whole budget.
    """
    best = best_trial(cell, rows)
    if best is None:
        nothing = StepsToTarget(cell.batch_size, (), (float(cell.budget_steps),))
        return StudyPoint(cell.optimizer, nothing, (None,), trials=len(_tuning(cell, rows)))
    runs = [row for row in rows if row["cell"] == cell.name and row["number"] == best["number"]]
    final = sorted((row for row in runs if row["seed"] in cell.seeds), key=lambda row: row["seed"])
    by_seed = tuple(float(row["steps"]) if row["status"] == REACHED else None for row in final)
    reached = tuple(steps for steps in by_seed if steps is not None)
    hidden = (float(cell.budget_steps),) * (len(by_seed) - len(reached))
    return StudyPoint(
        cell.optimizer,
        StepsToTarget(cell.batch_size, reached, hidden),
        by_seed,
        setting=dict(best["setting"]),
        border=borders(best["setting"], cell.ranges),
        noise_scale=_noise_scale(final, "noise_scale"),
        optimizer_noise_scale=_noise_scale(final, "optimizer_noise_scale"),
        trials=len(_tuning(cell, rows)),
        runs=tuple(row["run"] for row in final),
    )


def _tuning(cell: Cell, rows: Sequence[Row]) -> list[Row]:
    known = range(len(cell.settings))
    return [
        row for row in rows if row["cell"] == cell.name and row["seed"] == cell.tuning_seed and row["number"] in known
    ]


def _noise_scale(rows: Sequence[Row], key: str) -> Interval | None:
    """The geometric mean over seeds of value and ends: the interval is a single run's."""
    known = [row[key] for row in rows if row.get(key)]
    known = [scale for scale in known if all(0 < scale[end] < math.inf for end in ("value", "low", "high"))]
    if not known:
        return None
    ends = (math.exp(sum(math.log(scale[end]) for scale in known) / len(known)) for end in ("value", "low", "high"))
    return Interval(*ends)

"""The numbers of a file of rows by name, in memory that does not grow with the file.

Up to 32,768 values of a name are kept as they are. Of more, every n-th is, with n a power of two, and beside it the
mean, the least and the greatest of the n values that it ends: no extreme is lost, and means are over all values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from largebatch.trackers.row_file import read_lines
from largebatch.trackers.tracker import Row

MOST_POINTS = 2**15  # of a name
_FOLDED_EVERY = 2**12  # rows
_LARGEST = 1e150  # squares of anything larger overflow: it counts as infinite
_FURTHEST = 2**53  # positions beyond it are no exact numbers any more
_FAULTS = {
    "torn": "no whole row: {}",
    "misplaced": "no step and samples from 0 to 2^53: {}",
    "backward": "a step before that of the row above: {}",
    "no_number": "a value that is no number: {}",
}
_SHOWN = 3  # lines of a fault


@dataclass(frozen=True)
class Column:
    """A metric over a run, ascending in samples; each array has one entry per point.

    Attributes:
        steps: optimizer steps.
        samples: samples seen.
        values: NaN where a value is not finite.
        means: of the finite values since the point before.
        low, high: the least and the greatest of them.
        every: how many values a point stands for; 1: none is left out, and `means`, `low` and `high` are the values.
    """

    steps: np.ndarray
    samples: np.ndarray
    values: np.ndarray
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    every: int = 1


_EMPTY = np.empty(0)
NOTHING = Column(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)


@dataclass(frozen=True)
class Columns:
    """What a file of rows says.

    Attributes:
        by_name: the columns that were asked for, of those that have a finite value.
        last: the last finite value of each, in the order of writing.
        num_rows: rows with a position.
        steps, samples_seen: the furthest position.
        faults: what was passed over, one clause per kind.
    """

    by_name: Mapping[str, Column] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    num_rows: int = 0
    steps: int = 0
    samples_seen: int = 0
    faults: tuple[str, ...] = ()


def read_columns(path: str | Path, names: Collection[str], *, inside: Path | None = None) -> Columns:
    """Read the columns `names` of a file of rows; `inside` and errors as of `read_lines`.

    A row counts if its `step` and `samples_seen` are numbers from 0 to 2^53; of its other values only numbers do, and
    those beyond 1e150 count as infinite. A last line that has no end yet is just being written, and is no fault.
    """
    growing = {name: _Growing() for name in names}
    faults = Faults()
    furthest = (0.0, 0.0)
    num_rows = 0
    for num_rows, (step, samples, number, row) in enumerate(placed_rows(path, faults, inside=inside), start=1):
        furthest = max(furthest[0], step), max(furthest[1], samples)
        for name, one in growing.items():
            if name in row and not one.add(step, samples, row[name]):
                faults.add("no_number", number)
        if num_rows % _FOLDED_EVERY == 0:
            for one in growing.values():
                one.fold()
    by_name = {name: column for name, one in growing.items() if (column := one.column()) is not None}
    last = {name: growing[name].last for name in by_name}
    return Columns(by_name, last, num_rows, int(furthest[0]), int(furthest[1]), faults.told())


class Faults:
    """Lines of a file of rows that could not be used, or not all of them: how many of each kind, and the first."""

    def __init__(self) -> None:
        self._first: dict[str, list[int]] = {kind: [] for kind in _FAULTS}
        self._count = dict.fromkeys(_FAULTS, 0)

    def add(self, kind: str, line: int) -> None:
        """One more, a key of `_FAULTS`; a line counts once."""
        lines = self._first[kind]
        if line in lines:
            return
        self._count[kind] += 1
        if len(lines) < _SHOWN:
            lines.append(line)

    def told(self) -> tuple[str, ...]:
        """One clause per kind that there is."""
        return tuple(clause.format(self._lines(kind)) for kind, clause in _FAULTS.items() if self._count[kind])

    def _lines(self, kind: str) -> str:
        more = self._count[kind] - len(self._first[kind])
        shown = ", ".join(f"{line:,}" for line in self._first[kind])
        return f"line{'s' * (self._count[kind] > 1)} {shown}{f' and {more:,} more' if more else ''}"


def placed_rows(
    path: str | Path, faults: Faults, *, inside: Path | None = None
) -> Iterator[tuple[float, float, int, Row]]:
    """(step, samples seen, number of the line, row) of the rows that have a position; `faults` tells of the others."""
    before = 0.0
    for line in read_lines(path, inside=inside):
        place = position(line.row)
        if place is not None and line.row is not None:
            step, samples = place
            if step < before:
                faults.add("backward", line.number)
            before = step
            yield step, samples, line.number, line.row
        elif line.is_ended:
            faults.add("torn" if line.row is None else "misplaced", line.number)


def number(value: object) -> float | None:
    """A value of a row as it counts: NaN where it is not finite or beyond 1e150; None if it is no number."""
    if not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else math.nan


def position(row: Row | None) -> tuple[float, float] | None:
    """(step, samples seen) of a row that has both, as numbers from 0 to 2^53; else None."""
    if row is None:
        return None
    step, samples = row.get("step"), row.get("samples_seen")
    if not (isinstance(step, (int, float)) and isinstance(samples, (int, float))):
        return None
    return (step, samples) if 0 <= step <= _FURTHEST and 0 <= samples <= _FURTHEST else None


class _Growing:
    """A column that is being read."""

    def __init__(self) -> None:
        self.last = math.nan
        self._every = 1
        self._new: list[tuple[float, float, float]] = []  # step, samples, value
        # [points, 7] each: step, samples, value, mean, least, greatest, and how many values are finite.
        self._points: list[np.ndarray] = []

    def add(self, step: float, samples: float, value: object) -> bool:
        """Whether it is a number."""
        if (plain := number(value)) is None:
            return False
        self._new.append((step, samples, plain))
        return True

    def fold(self) -> None:
        """Make points of what came, as far as it fills them."""
        while len(self._new) >= self._every:
            room = MOST_POINTS - sum(map(len, self._points))
            if room == 0:
                points = np.concatenate(self._points)
                self._points = [_joined(points[0::2], points[1::2])]
                self._every *= 2
                continue
            whole = min(room, len(self._new) // self._every) * self._every
            self._take(np.array(self._new[:whole], dtype=float).reshape(-1, self._every, 3))
            del self._new[:whole]

    def column(self) -> Column | None:
        """What was read, whole; None without a finite value."""
        self.fold()
        if self._new:  # the last point stands for fewer
            self._take(np.array([self._new], dtype=float))
            self._new.clear()
        if math.isnan(self.last):
            return None
        points = np.concatenate(self._points)
        points = points[np.argsort(points[:, 1], kind="stable")]
        steps, samples, values, means, low, high, _ = points.T
        return Column(steps, samples, values, means, low, high, self._every)

    def _take(self, groups: np.ndarray) -> None:
        """`groups` are [points, values of each, 3]."""
        values = groups[..., 2]
        finite = np.isfinite(values)
        if finite.any():
            self.last = float(values[finite][-1])
        count = finite.sum(axis=1)
        known = count > 0
        mean = np.where(finite, values, 0.0).sum(axis=1) / np.maximum(count, 1)
        low, high = np.where(finite, values, np.inf).min(axis=1), np.where(finite, values, -np.inf).max(axis=1)
        sides = [np.where(known, side, np.nan) for side in (mean, low, high)]
        self._points.append(np.column_stack([groups[:, -1], *sides, count]))


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Points that stand for twice as many values each."""
    joined = second.copy()
    count = first[:, 6] + second[:, 6]
    sums = np.nan_to_num(first[:, 3]) * first[:, 6] + np.nan_to_num(second[:, 3]) * second[:, 6]
    joined[:, 3] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
    joined[:, 4], joined[:, 5] = np.fmin(first[:, 4], second[:, 4]), np.fmax(first[:, 5], second[:, 5])
    joined[:, 6] = count
    return joined

"""The numbers of a file of rows by name, in memory that does not grow with the file.

Up to 32,768 values of a name are kept as they are. Of more, every n-th is, with n a power of two, and beside it the
mean, the least and the greatest of the n values that it ends: no extreme is lost, and means are over all values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from largebatch.records.rows.augmented_gap import AUGMENTED_GAP
from largebatch.records.rows.placed_rows import FURTHEST, Faults, Place, number, placed_rows, position
from largebatch.records.rows.row_file import Row

MOST_POINTS = 2**15  # of a name
_FOLDED_EVERY = 2**12  # rows
_MOST_NAMES = 500  # of columns: a name takes up to 2 MB


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
        lost: values that are not finite, those between the points as well.
    """

    steps: np.ndarray
    samples: np.ndarray
    values: np.ndarray
    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    every: int = 1
    lost: int = 0


_EMPTY = np.empty(0)
NOTHING = Column(_EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY, _EMPTY)


@dataclass(frozen=True)
class Columns:
    """The columns of a file of rows.

    Attributes:
        by_name: the columns that were asked for, of those that have a finite value.
        last: the last finite value of each, in the order of writing.
        num_rows: rows with a position.
        steps, samples_seen: the furthest position.
        faults: lines that were passed over, one clause per kind.
    """

    by_name: Mapping[str, Column] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    num_rows: int = 0
    steps: int = 0
    samples_seen: int = 0
    faults: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """Without entries where there is no finite value."""
        return self.by_name.get(name, NOTHING)

    def has(self, name: str) -> bool:
        """Whether any value of `name` can be drawn."""
        return name in self.by_name

    @property
    def is_gap_augmented(self) -> bool:
        """Whether an evaluation read a set that augments by itself, which changes the meaning of the gap."""
        return bool(np.any(self.column(AUGMENTED_GAP).high > 0))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(samples seen, values), ascending; of a long column every n-th."""
        column = self.column(name)
        return column.samples, column.values


def read_columns(
    path: str | Path, is_wanted: Callable[[str], bool], *, inside: Path | None = None, end: Place = FURTHEST
) -> Columns:
    """Read the columns of a file of rows whose name is wanted; other arguments as of `placed_rows`.

    Of the values of a row only numbers count, and those beyond 1e150 count as infinite.
    """
    faults = Faults()
    return _columns(placed_rows(path, faults, inside=inside, end=end), is_wanted, faults)


def columns_of(rows: Iterable[Row]) -> Columns:
    """All columns of rows in memory, as of `read_columns`.

    >>> rows = [{"step": 2, "samples_seen": 8, "a": 2.0}, {"step": 1, "samples_seen": 4, "a": float("inf")}]
    >>> [column.tolist() for column in columns_of(rows).series("a")]
    [[4.0, 8.0], [nan, 2.0]]
    """
    placed = ((*place, line, row) for line, row in enumerate(rows, start=1) if (place := position(row)))
    return _columns(placed, lambda name: True, Faults())


def _columns(
    placed: Iterable[tuple[float, float, int, Row]], is_wanted: Callable[[str], bool], faults: Faults
) -> Columns:
    growing: dict[str, _Growing] = {}
    furthest = (0.0, 0.0)
    num_rows = 0
    for num_rows, (step, samples, line, row) in enumerate(placed, start=1):
        furthest = max(furthest[0], step), max(furthest[1], samples)
        for name, value in row.items():
            if (one := growing.get(name)) is None:
                if len(growing) >= _MOST_NAMES or not is_wanted(name):
                    continue
                one = growing[name] = _Growing()
            if not one.add(step, samples, value):
                faults.add("no_number", line)
        if num_rows % _FOLDED_EVERY == 0:
            for one in growing.values():
                one.fold()
    by_name = {name: column for name, one in growing.items() if (column := one.column()) is not None}
    last = {name: growing[name].last for name in by_name}
    return Columns(by_name, last, num_rows, int(furthest[0]), int(furthest[1]), faults.clauses())


class _Growing:
    """A column that is being read."""

    def __init__(self) -> None:
        self.last = math.nan
        self._lost = 0
        self._every = 1
        self._new: list[tuple[float, float, float]] = []  # step, samples, value
        # [points, 7] each: step, samples, value, mean, least, greatest, and how many values are finite.
        self._points: list[np.ndarray] = []

    def add(self, step: float, samples: float, value: object) -> bool:
        """Take a value; False if it is no number."""
        if (plain := number(value)) is None:
            return False
        self._new.append((step, samples, plain))
        return True

    def fold(self) -> None:
        """Make points of the values so far, as many as they fill."""
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
        """The finished column; None without a finite value."""
        self.fold()
        if self._new:  # the last point stands for fewer
            self._take(np.array([self._new], dtype=float))
            self._new.clear()
        if math.isnan(self.last):
            return None
        points = np.concatenate(self._points)
        points = points[np.argsort(points[:, 1], kind="stable")]
        steps, samples, values, means, low, high, _ = points.T
        return Column(steps, samples, values, means, low, high, self._every, self._lost)

    def _take(self, groups: np.ndarray) -> None:
        """`groups` are [points, values of each, 3]."""
        values = groups[..., 2]
        finite = np.isfinite(values)
        if finite.any():
            self.last = float(values[finite][-1])
        count = finite.sum(axis=1)
        self._lost += finite.size - int(count.sum())
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

"""Rows of a file that have a position in their run, read without trust; the others are counted."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from largebatch.records.regular_files import open_regular
from largebatch.records.rows.row_file import Line, Row, parse_row, read_lines

Place = tuple[float, float]  # step, samples seen
FURTHEST: Place = (2**53, 2**53)  # beyond it are no exact numbers any more
_LARGEST = 1e150  # squares of anything larger overflow: it counts as infinite
_FAULTS = {
    "torn": "no whole row: {}",
    "misplaced": "no step and samples from 0 to 2^53: {}",
    "beyond": "a position more than twice as far as plan.json plans: {}",
    "backward": "a step before that of the row above: {}",
    "no_number": "a value that is no number: {}",
}
_SHOWN = 3  # lines of a fault


class Faults:
    """Lines of a file of rows that could not be used, or not all of them: how many of each kind, and the first."""

    def __init__(self) -> None:
        self._first: dict[str, list[int]] = {kind: [] for kind in _FAULTS}
        self._count = dict.fromkeys(_FAULTS, 0)

    def add(self, kind: str, line: int) -> None:
        """Count one more of a kind, which is a key of `_FAULTS`; a line counts once."""
        lines = self._first[kind]
        if line in lines:
            return
        self._count[kind] += 1
        if len(lines) < _SHOWN:
            lines.append(line)

    def clauses(self) -> tuple[str, ...]:
        """One clause per kind that occurred."""
        return tuple(clause.format(self._lines(kind)) for kind, clause in _FAULTS.items() if self._count[kind])

    def _lines(self, kind: str) -> str:
        more = self._count[kind] - len(self._first[kind])
        shown = ", ".join(f"{line:,}" for line in self._first[kind])
        return f"line{'s' * (self._count[kind] > 1)} {shown}{f' and {more:,} more' if more else ''}"


def placed_rows(
    path: str | Path, faults: Faults, *, inside: Path | None = None, end: Place = FURTHEST
) -> Iterator[tuple[float, float, int, Row]]:
    """(step, samples seen, number of the line, row) of the rows that have a position; `faults` tells of the others.

    Args:
        path: the file; errors as of `read_lines`.
        faults: counts lines that are passed over. A last line without an end is just being written, and is no fault.
        inside: a folder that a link must not lead out of.
        end: step and samples beyond which a row is damage: one of them would squeeze everything that is drawn.
    """
    before = 0.0
    for line, row, (step, samples) in _placed_lines(path, faults, inside, end):
        if step < before:
            faults.add("backward", line.number)
        before = step
        yield step, samples, line.number, row


def spread_rows(
    path: str | Path, most: int, faults: Faults, *, inside: Path | None = None, end: Place = FURTHEST
) -> Iterator[Row]:
    """The rows that have a position; of more than `most` as many evenly spaced ones, the first and the last included.

    Other arguments as of `placed_rows`.
    """
    starts = array("q", (line.start for line, _, _ in _placed_lines(path, faults, inside, end)))
    with open_regular(Path(path), inside=inside) as file:
        for place in thinned(len(starts), most):
            file.seek(starts[place])
            yield parse_row(file.readline().removesuffix(b"\n")) or {}


def thinned(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` points, evenly spaced, ends included.

    >>> thinned(5, 3).tolist(), thinned(2, 3).tolist()
    ([0, 2, 4], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _placed_lines(
    path: str | Path, faults: Faults, inside: Path | None, end: Place
) -> Iterator[tuple[Line, Row, Place]]:
    for line in read_lines(path, inside=inside):
        place = position(line.row)
        if place is None or line.row is None:
            if line.is_ended:
                faults.add("torn" if line.row is None else "misplaced", line.number)
        elif place[0] > end[0] or place[1] > end[1]:
            faults.add("beyond", line.number)
        else:
            yield line, line.row, place


def number(value: object) -> float | None:
    """A value of a row as it counts: NaN where it is not finite or beyond 1e150; None if it is no number."""
    if not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else math.nan


def position(row: Row | None) -> Place | None:
    """(step, samples seen) of a row that has both, as numbers from 0 to 2^53; else None."""
    if row is None:
        return None
    step, samples = row.get("step"), row.get("samples_seen")
    if not (isinstance(step, (int, float)) and isinstance(samples, (int, float))):
        return None
    return (step, samples) if 0 <= step <= FURTHEST[0] and 0 <= samples <= FURTHEST[1] else None

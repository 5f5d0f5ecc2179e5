"""Columns of a run's rows, as every chart takes them; without matplotlib, which takes a second to load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from largebatch.records.rows.row_file import Row

AUGMENTED_GAP = "gap/is_augmented"  # 1 in the rows of evaluations that read an augmented set; absent elsewhere


def series(rows: Sequence[Row], key: str, against: str = "samples_seen") -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the rows that have `key`, ordered by x; y is NaN where the value is not finite.

    >>> rows = [{"samples_seen": 8, "a": 2.0}, {"samples_seen": 4, "a": float("inf")}, {"samples_seen": 9}]
    >>> [column.tolist() for column in series(rows, "a")]
    [[4.0, 8.0], [nan, 2.0]]
    """
    pairs = [(float(row[against]), float(row[key])) for row in rows if key in row and against in row]
    x, y = np.array(sorted(pairs, key=lambda pair: pair[0])).reshape(-1, 2).T
    return x, np.where(np.isfinite(y), y, np.nan)


def of_gap(is_augmented: object) -> str:
    """What is said beside a generalization gap: a data set that augments by itself changes its meaning.

    >>> of_gap({"gap/loss": 0.1, AUGMENTED_GAP: 1}.get(AUGMENTED_GAP))
    ', one side augmented'
    """
    return ", one side augmented" if is_augmented else ""


def has_data(rows: Sequence[Row], key: str) -> bool:
    """Whether any value of `key` can be drawn."""
    return bool(np.isfinite(series(rows, key)[1]).any())

"""The bootstrap for means of samples: which of them would differ if other samples had been drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_AT_ONCE = 2**22  # counts in memory at a time: 32 MB
_LEVEL = 0.95
# Two seeds have no interval worth printing: Student's is 12.7 standard errors wide to either side, so that accuracies
# reach beyond 1 and steps over three decades, and the range of two holds their median in half of all cases.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval; NaN ends: there is none.

    >>> f"{Interval(0.1, 0.08, 0.125):.3g}", f"{Interval(0.1, math.nan, math.nan):.3g}"
    ('0.1 (95 %: 0.08 to 0.125)', '0.1 (fewer than 3 seeds: no interval)')
    """

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """Value and ends, each in the given form."""
        if math.isnan(self.low):
            return f"{self.value:{form}} (fewer than {LEAST_SEEDS} seeds: no interval)"
        return f"{self.value:{form}} (95 %: {self.low:{form}} to {self.high:{form}})"


def resampled_ratios(tops: Array, bottoms: Array, *, num_resamples: int, seed: int) -> Array:
    """sum(top) / sum(bottom) of every column over resamples of the rows, with replacement, as many as there are.

    All columns of a call share their resamples: differences between columns are paired, so that what columns have in
    common (a sample that is hard under every condition) cancels. Rows, not units, are drawn: tokens of one sample are
    correlated.

    Args:
        tops: [n, k].
        bottoms: [n, k]: units of each row; ones for plain means.
        num_resamples: R.
        seed: of the resamples, which are the same on every machine.

    Returns:
        [R, k]; NaN where a resample has no unit.

    Raises:
        ValueError: if the shapes differ or there are fewer than 2 rows, whose spread nobody knows.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    if tops.shape != bottoms.shape or tops.ndim != 2:
        raise ValueError(f"Shapes {tops.shape} and {bottoms.shape}: both are [n, k], a row per sample.")
    if len(tops) < 2:
        raise ValueError(f"{len(tops)} samples: a spread needs at least 2.")
    columns = np.concatenate([tops, bottoms], axis=1)
    sums = np.concatenate([counts @ columns for counts in _counts(len(tops), num_resamples, seed)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = sums[:, : tops.shape[1]] / sums[:, tops.shape[1] :]
    return ratios


def percentile_interval(value: float, resampled: Array) -> Interval:
    """A value with the percentile interval of its resamples; those that are not numbers are left out.

    >>> percentile_interval(0.0, np.arange(-20.0, 21.0))
    Interval(value=0.0, low=-19.0, high=19.0)
    """
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _counts(num_rows: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[Any]]:
    """How often each row is in each resample, [some, num_rows] at a time, [num_resamples, num_rows] in all."""
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, _AT_ONCE // num_rows)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        drawn = generator.integers(0, num_rows, size=(size, num_rows))
        drawn += np.arange(size)[:, None] * num_rows
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from n ascending independent values: the order statistics n/2 -+ 0.98 sqrt(n).

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2 (normal approximation of the binomial).

    >>> median_interval([float(value) for value in range(100)])
    (40.0, 59.0)
    """
    half_width = 0.98 * math.sqrt(len(ordered))
    first = max(math.ceil(len(ordered) / 2 - half_width) - 1, 0)
    return ordered[first], ordered[-first - 1]

"""95 % intervals: bootstrap intervals of means over samples, order-statistic intervals of medians."""

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
# Two seeds give no useful interval: Student's extends 12.7 standard errors to either side, so accuracies exceed 1 and
# steps span three decades; the range of two seeds contains the median only half of the time.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN ends mean that there is no interval.

    >>> f"{Interval(0.1, 0.08, 0.125):.3g}", f"{Interval(0.1, math.nan, math.nan):.3g}"
    ('0.1 (95 %: 0.08 to 0.125)', '0.1 (fewer than 3 seeds: no interval)')
    """

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """Value and ends, each formatted with `form`."""
        if math.isnan(self.low):
            return f"{self.value:{form}} (fewer than {LEAST_SEEDS} seeds: no interval)"
        return f"{self.value:{form}} (95 %: {self.low:{form}} to {self.high:{form}})"


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's 95 % interval; NaN ends for fewer than 3 values, or if none differs from another.

    >>> found = mean_interval([1.0, 2.0, 3.0])  # t(2) = 4.303, error sqrt(1/3)
    >>> round(found.low, 3), found.value, round(found.high, 3)
    (-0.484, 2.0, 4.484)
    >>> mean_interval([1.0, 3.0])
    Interval(value=2.0, low=nan, high=nan)
    """
    from scipy.special import stdtrit

    count, mean = len(values), math.fsum(values) / len(values)
    if count < LEAST_SEEDS or len(set(values)) == 1:
        return Interval(mean, math.nan, math.nan)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def resampled_ratios(tops: Array, bottoms: Array, *, num_resamples: int, seed: int) -> Array:
    """sum(top) / sum(bottom) of every column over resamples of the rows, with replacement, as many as there are.

    All columns of a call share their resamples. Differences between columns are therefore paired, and variation common
    to both (a sample that is hard under every condition) cancels. Rows are resampled, not units, because tokens of one
    sample are correlated.

    Args:
        tops: numerators, [n, k].
        bottoms: denominators, [n, k]: units of each row; ones for plain means.
        num_resamples: R.
        seed: seed of the resamples, which are the same on every machine.

    Returns:
        [R, k]; NaN where a resample has no unit.

    Raises:
        ValueError: if the shapes differ or there are fewer than 2 rows.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    if tops.shape != bottoms.shape or tops.ndim != 2:
        raise ValueError(f"Shapes {tops.shape} and {bottoms.shape}: both must be [n, k], a row per sample.")
    if len(tops) < 2:
        raise ValueError(f"{len(tops)} samples: a spread needs at least 2.")
    columns = np.concatenate([tops, bottoms], axis=1)
    sums = np.concatenate([counts @ columns for counts in _counts(len(tops), num_resamples, seed)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = sums[:, : tops.shape[1]] / sums[:, tops.shape[1] :]
    return ratios


def percentile_interval(value: float, resampled: Array) -> Interval:
    """A value with the percentile interval of its resamples; NaN resamples are ignored.

    >>> percentile_interval(0.0, np.arange(-20.0, 21.0))
    Interval(value=0.0, low=-19.0, high=19.0)
    """
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _counts(num_rows: int, num_resamples: int, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Counts of each row in each resample, [num_resamples, num_rows] in total, in blocks of resamples."""
    generator = np.random.Generator(np.random.PCG64(seed))
    at_once = max(1, _AT_ONCE // num_rows)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        drawn = generator.integers(0, num_rows, size=(size, num_rows))
        drawn += np.arange(size)[:, None] * num_rows
        yield np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows).astype(np.float64)


def fieller_interval(top: float, bottom: float, covariance: Array, *, quantile: float) -> tuple[float, float] | None:
    """Fieller's interval of top / bottom for two estimates with a known covariance; None if it is unbounded.

    It holds all r with (top - r bottom)^2 <= quantile^2 Var(top - r bottom), between the roots of a r^2 - 2 b r + c.

    Args:
        top: estimate of the numerator.
        bottom: estimate of the denominator.
        covariance: covariance matrix of (top, bottom), [2, 2].
        quantile: 97.5 % point of the distribution of the errors, for a 95 % interval.

    Source: Fieller 1954, "Some problems in interval estimation".

    >>> low, high = fieller_interval(4.0, 2.0, np.diag([0.01, 0.0]), quantile=2.0)  # (4 -+ 0.2) / 2
    >>> round(low, 9), round(high, 9)
    (1.9, 2.1)
    """
    (v_top, c_both), (_, v_bottom) = (quantile**2 * covariance).tolist()
    a, b, c = bottom**2 - v_bottom, top * bottom - c_both, top**2 - v_top
    if a <= 0 or bottom <= 0:
        return None
    root = math.sqrt(max(b**2 - a * c, 0.0))  # top / bottom lies between the roots, so below 0 is rounding
    return (b - root) / a, (b + root) / a


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from n ascending independent values: the order statistics n/2 -+ 0.98 sqrt(n).

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2 (normal approximation of the binomial).

    >>> median_interval([float(value) for value in range(100)])
    (40.0, 59.0)
    """
    half_width = 0.98 * math.sqrt(len(ordered))
    first = max(math.ceil(len(ordered) / 2 - half_width) - 1, 0)
    return ordered[first], ordered[-first - 1]

"""Means over seeds, and how well a few seeds know them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.intervals import LEAST_SEEDS

_EQUAL = 1.25


class Band(NamedTuple):
    """A mean and its 95 % interval, each [n]; fewer than three seeds have no interval."""

    mean: list[float]
    low: list[float] | None
    high: list[float] | None


def band_of_mean(
    values: npt.ArrayLike, *, of_logarithms: bool = False, within: tuple[float, float] = (-math.inf, math.inf)
) -> Band:
    """Mean over the first axis of `values` [seeds, n], with Student's interval for so many independent seeds.

    With `of_logarithms` the geometric mean of positive values: its interval stays positive on a logarithmic axis.
    `within` are the bounds of the quantity, 0 and 1 for a share.

    >>> band_of_mean([[1.0], [2.0], [3.0]], within=(0.0, 4.0))  # 2 +- 4.303 x sqrt(1/3)
    Band(mean=[2.0], low=[0.0], high=[4.0])
    >>> band_of_mean([[2.0], [4.0]])
    Band(mean=[3.0], low=None, high=None)
    """
    rows = np.asarray(values, dtype=np.float64)
    back = np.exp if of_logarithms else np.asarray
    rows = np.log(rows) if of_logarithms else rows
    mean = rows.mean(axis=0)
    if len(rows) < LEAST_SEEDS:
        return Band(back(mean).tolist(), None, None)
    from scipy.special import stdtrit

    half = stdtrit(len(rows) - 1, 0.975) * rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    low, high = (np.clip(back(end), *within).tolist() for end in (mean - half, mean + half))
    return Band(back(mean).tolist(), low, high)


@dataclass(frozen=True)
class Agreement:
    """Whether measurement and prediction agree, by their ratio over seeds.

    Attributes:
        value: geometric mean of measured over predicted.
        low, high: its 95 % interval; NaN for fewer than three seeds.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    seeds: int

    @property
    def interval(self) -> str:
        """As text; empty without an interval."""
        return "" if math.isnan(self.low) else f" (95 %: {self.low:.2f} to {self.high:.2f})"

    @property
    def is_below(self) -> bool:
        """Whether they disagree because the measured value is smaller."""
        return self.high < 1 / _EQUAL

    @property
    def words(self) -> str:
        """Whether they agree within a quarter: with enough seeds, every model differs from its measurement."""
        if math.isnan(self.low):
            return f"{seeds_text(self.seeds)} cannot tell whether they agree"
        if self.is_below or self.low > _EQUAL:
            return "they disagree"
        if self.low >= 1 / _EQUAL and self.high <= _EQUAL:
            return "they agree"
        return f"{self.seeds} seeds do not tell whether they agree"


def agreement(ratios: npt.ArrayLike) -> Agreement:
    """The agreement of measured over predicted values, [seeds], all above 0.

    >>> agreement([0.5, 0.5, 0.51]).words, agreement([1.0, 1.01, 1.02]).words, agreement([1.0]).words
    ('they disagree', 'they agree', 'one seed cannot tell whether they agree')
    >>> agreement([0.6, 1.0, 1.5]).words
    '3 seeds do not tell whether they agree'
    """
    mean, low, high = band_of_mean(np.asarray(ratios, dtype=np.float64)[:, None], of_logarithms=True)
    ends = (math.nan, math.nan) if low is None or high is None else (low[0], high[0])
    return Agreement(mean[0], *ends, len(np.asarray(ratios)))


def seeds_text(seeds: int) -> str:
    """The number of seeds as text.

    >>> seeds_text(1), seeds_text(2)
    ('one seed', '2 seeds')
    """
    return "one seed" if seeds == 1 else f"{seeds} seeds"

"""Grades of predictions: how far off they were, how often their intervals held, and how much wider they should be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.chances import beta_quantile, e_to

_LEVEL = 0.95
LEAST_HALF = 1e-3
"""Least half width of an interval on the logarithm: a few runs that agree to the last digit, as the memory of a GPU
does, do not prove that there is no spread, and no score is measured in widths of 0."""
MOST_GRADED = 200  # newest grades that widen an interval: a machine of long ago says nothing about today's


@dataclass(frozen=True)
class Grade:
    """A prediction, and what was measured afterwards; all of them above 0, in one unit.

    Attributes:
        quantity: its key.
        value, low, high: as predicted, 95 %.
        measured: what came.
        widened_by: the factor by which earlier grades had widened the interval on the logarithm.
    """

    quantity: str
    value: float
    low: float
    high: float
    measured: float
    widened_by: float = 1.0

    @property
    def is_inside(self) -> bool:
        """Whether the interval held."""
        return self.low <= self.measured <= self.high

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.value

    @property
    def score(self) -> float:
        """Distance from the prediction over the half width of the interval before it was widened, on the logarithm.

        >>> Grade("step_time", 1.0, 0.5, 2.0, 4.0).score, Grade("step_time", 1.0, 0.5, 2.0, 4.0, widened_by=2.0).score
        (2.0, 4.0)
        """
        distance = math.log(self.measured / self.value)
        half = math.log(self.high / self.value) if distance > 0 else math.log(self.value / self.low)
        return abs(distance) / max(half / self.widened_by, LEAST_HALF)


def widening(grades: Sequence[Grade]) -> float:
    """The factor, 1 or more, by which intervals must be wider for the graded runs to have been inside often enough.

    It is split conformal prediction on `Grade.score` (Lei et al. 2018, "Distribution-free predictive inference for
    regression", section 2.2): the ceil(0.95 (n + 1))-th smallest of n scores bounds that of the next run with a chance
    of 95 %, if runs are exchangeable. With fewer than 19 scores there is no such one; the largest of n then bounds the
    next with n / (n + 1). Intervals are never made narrower: a few good grades prove no smaller spread.

    Args:
        grades: of one quantity, oldest first; the newest `MOST_GRADED` count.

    >>> widening([]), widening([Grade("time", 1.0, 0.5, 2.0, 4.0)]), widening([Grade("time", 1.0, 0.5, 2.0, 1.1)])
    (1.0, 2.0, 1.0)
    """
    scores = sorted(one.score for one in grades[-MOST_GRADED:])
    if not scores:
        return 1.0
    place = min(math.ceil(_LEVEL * (len(scores) + 1)), len(scores))
    return max(scores[place - 1], 1.0)


def widened(one: Interval, factor: float) -> Interval:
    """The interval, wider by a factor on the logarithm: value (end / value)^factor; half of it is `LEAST_HALF` or more.

    >>> widened(Interval(1.0, 0.5, 2.0), 2.0)
    Interval(value=1.0, low=0.25, high=4.0)
    """
    if math.isnan(one.low) or math.isnan(one.high):
        return one
    ratios = [end / one.value for end in (one.low, one.high)]
    halves = [max(abs(math.log(ratio)), LEAST_HALF) if ratio > 0 else math.inf for ratio in ratios]
    if factor == 1 and min(halves) > LEAST_HALF:
        return one
    low, high = (factor * half for half in halves)
    return Interval(one.value, one.value * math.exp(-low), one.value * e_to(high))


@dataclass(frozen=True)
class Calibration:
    """How well the predictions of one quantity did.

    Attributes:
        quantity: its key.
        number: of grades.
        median_error: median of |measured / predicted - 1|.
        median_ratio: of measured over predicted; above 1: predictions are too low.
        median_width: of the upper over the lower end of the intervals: wide ones hold easily, and say little.
        inside: intervals that held.
        share: of them, with its 95 % interval (Clopper and Pearson 1934).
    """

    quantity: str
    number: int
    median_error: float
    median_ratio: float
    median_width: float
    inside: int
    share: Interval

    @property
    def is_doubtful(self) -> bool:
        """Whether so few intervals held that a coverage of 95 % is refuted."""
        return self.share.high < _LEVEL


def calibrations(grades: Sequence[Grade]) -> list[Calibration]:
    """One per quantity, in the order in which they come."""
    return [
        _calibration(key, [one for one in grades if one.quantity == key])
        for key in dict.fromkeys(one.quantity for one in grades)
    ]


def _calibration(key: str, grades: Sequence[Grade]) -> Calibration:
    inside, number = sum(one.is_inside for one in grades), len(grades)
    errors = [abs(one.ratio - 1) for one in grades]
    ratio = statistics.median(one.ratio for one in grades)
    width = statistics.median(one.high / one.low for one in grades)
    return Calibration(key, number, statistics.median(errors), ratio, width, inside, share_interval(inside, number))


def share_interval(hits: int, number: int) -> Interval:
    """A share with its exact 95 % interval of Clopper and Pearson 1934.

    >>> one = share_interval(10, 10)
    >>> round(one.low, 4), one.high  # 0.025^(1 / 10)
    (0.6915, 1.0)
    """
    tail = (1 - _LEVEL) / 2
    low = beta_quantile(hits, number - hits + 1, tail) if hits else 0.0
    high = beta_quantile(hits + 1, number - hits, 1 - tail) if hits < number else 1.0
    return Interval(hits / number, low, high)

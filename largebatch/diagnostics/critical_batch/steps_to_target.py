"""Steps to a target at one batch size, over replicates; some may not have reached it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.diagnostics.intervals import LEAST_SEEDS

_LEVEL = 0.95
_WHOLE_FROM = 100  # steps, of which a fraction is less than a percent


@dataclass(frozen=True)
class StepsToTarget:
    """Steps to a target, measured at one batch size.

    Attributes:
        batch_size: B, in samples.
        reached: steps of each replicate (seed) that reached the target.
        censored: total steps of each replicate that did not reach it.
        summarised: number of runs whose median the one value is, as in published tables; 0: the values are runs.

    Raises:
        ValueError: if there are no numbers, one is not above 0, or a summary has more than one value.

    >>> StepsToTarget(8, (90.0, 100.0), (500.0,)).median
    (100.0, False)
    >>> StepsToTarget(8, (100.0,), (400.0,)).median  # it lies above 200, the geometric mean
    (200.0, True)
    """

    batch_size: int
    reached: tuple[float, ...]
    censored: tuple[float, ...] = ()
    summarised: int = 0

    def __post_init__(self) -> None:
        numbers = (self.batch_size, *self.reached, *self.censored)
        if len(numbers) < 2 or not all(0 < number < math.inf for number in numbers):
            raise ValueError(
                f"batch size {self.batch_size}: steps {list(self.reached)}, censored at {list(self.censored)}: give at "
                "least one number of steps, all above 0 and finite."
            )
        if self.summarised < 0 or (self.summarised and len(numbers) > 2):
            raise ValueError(
                f"batch size {self.batch_size}: {len(numbers) - 1} values as the median of {self.summarised} runs. "
                "A summary must be one value."
            )

    @property
    def num_replicates(self) -> int:
        """Number of seeds, including those that did not reach the target."""
        return self.summarised or len(self.reached) + len(self.censored)

    @property
    def median(self) -> tuple[float, bool]:
        """Median steps (geometric mean of the middle two), and whether it is only a lower bound."""
        ordered = sorted([(steps, False) for steps in self.reached] + [(steps, True) for steps in self.censored])
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
        logs = [math.log(steps) for steps, _ in middle]
        lowest_bound = min(self.censored, default=math.inf)
        # A replicate censored before the median may belong above it.
        hidden = any(is_bound for _, is_bound in middle) or lowest_bound < middle[0][0]
        return round(math.exp(sum(logs) / len(logs)), 9), hidden

    @property
    def interval(self) -> tuple[float, float] | None:
        """A distribution-free interval of the median, from order statistics.

        For 3 to 5 seeds it is their range, with less than 95 %; see `level`. None for fewer seeds, a censored seed, or
        a summary.

        >>> StepsToTarget(8, (90.0, 100.0, 140.0)).interval, StepsToTarget(8, (90.0, 100.0)).interval
        ((90.0, 140.0), None)
        """
        if self.censored or self.summarised or len(self.reached) < LEAST_SEEDS:
            return None
        ordered, cut = sorted(self.reached), _cut(len(self.reached))
        return ordered[cut], ordered[-1 - cut]

    @property
    def level(self) -> float:
        """Coverage of `interval`, at least 0.95 from 6 seeds on.

        >>> StepsToTarget(8, (90.0, 100.0, 140.0)).level  # 1 - 2 / 2^3
        0.75
        """
        count = len(self.reached)
        return 1 - 2 * _below(_cut(count), count)


def _cut(count: int) -> int:
    """Number of values outside the interval on each side, among `count` ordered values."""
    inside = [cut for cut in range(count // 2) if 1 - 2 * _below(cut, count) >= _LEVEL]
    return max(inside, default=0)


def _below(cut: int, count: int) -> float:
    """Probability that at most `cut` of `count` values lie below the median."""
    return sum(math.comb(count, number) for number in range(cut + 1)) / 2**count


def steps_text(steps: float) -> str:
    """A number of steps, which lies between two steps as a mean or where the target is crossed between evaluations.

    Of few steps a rounded number would show a tie, and other samples than steps times batch size.

    >>> steps_text(5.29), steps_text(37.0), steps_text(1234.5)
    ('5.29', '37', '1,234')
    """
    return f"{steps:,.0f}" if steps >= _WHOLE_FROM or steps == round(steps) else f"{steps:.3g}"

"""Steps to a target at one batch size: replicates, some of which may not have reached it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.variance_law import t_quantile


@dataclass(frozen=True)
class StepsToTarget:
    """What was measured at one batch size.

    Attributes:
        batch_size: B, in samples.
        reached: steps of each replicate (seed) that reached the target.
        censored: steps of each that did not, within which it did not.

    Raises:
        ValueError: if a number is not above 0, or there is none.

    >>> StepsToTarget(8, (90.0, 100.0), (500.0,)).median
    (100.0, False)
    >>> StepsToTarget(8, (100.0,), (400.0,)).median  # it lies above 200, the geometric mean
    (200.0, True)
    """

    batch_size: int
    reached: tuple[float, ...]
    censored: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.batch_size, *self.reached, *self.censored)
        if len(numbers) < 2 or not all(0 < number < math.inf for number in numbers):
            raise ValueError(
                f"batch size {self.batch_size}: steps {list(self.reached)}, censored at {list(self.censored)}: at "
                "least one number of steps, and all of them above 0 and finite."
            )

    @property
    def num_replicates(self) -> int:
        """Seeds, those without the target too."""
        return len(self.reached) + len(self.censored)

    @property
    def median(self) -> tuple[float, bool]:
        """Median steps (of two, their geometric mean), and whether that is only a lower bound."""
        ordered = sorted([(steps, False) for steps in self.reached] + [(steps, True) for steps in self.censored])
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
        logs = [math.log(steps) for steps, _ in middle]
        lowest_bound = min(self.censored, default=math.inf)
        # One that was given up before the middle may belong behind it.
        hidden = any(is_bound for _, is_bound in middle) or lowest_bound < middle[0][0]
        return round(math.exp(sum(logs) / len(logs)), 9), hidden

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % for the typical steps, by Student's t over the logs of seeds; None for one seed, or a censored one."""
        if self.censored or len(self.reached) < 2:
            return None
        logs = np.log(self.reached)
        reach = t_quantile(len(logs)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        return math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)

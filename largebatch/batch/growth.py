"""A batch that grows while the rate would fall: any decay is cut into stages, and the batch takes its share of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

GROWTHS = {"full": 1.0, "seesaw": 0.5}
"""The share of a fall of the rate that the batch takes, as a power of it; the rate keeps the rest."""
DEFAULT_STAGE_FACTOR = 2.0
_ROUNDING = 1e-12  # of a factor, which one more rounding must not move into the next stage
_PLACES = 500


@dataclass(frozen=True)
class Growth:
    """How a batch replaces a decay, under a scaling rule lr ~ B^p.

    Runs with equal lr / B^p are equivalent to first order. Where a decay has multiplied the rate by f, the batch is
    f^(-share / p) times as large, and the rate is multiplied by f (B / B0)^p instead of f.

    - full, share 1: the batch takes all, the rate stays. 1 / f under the linear rule (Smith et al. 2018); 1 / f^2 under
      the square root.
    - seesaw, share 1/2: the rate keeps sqrt(f). Under the square root the batch grows by 1 / f: Meterez et al. 2025
      (arXiv 2510.14717), for adaptive methods: where a decay would halve the rate, multiply it by 1 / sqrt(2) and the
      batch by 2. Under the linear rule it grows by 1 / sqrt(f): derived here, from lr / B alone.

    Under the square root a step of a normalised method has the effective rate lr sqrt(B) / sigma. Seesaw keeps it, and
    full growth raises it by 1 / f: it ends where that leaves the stable region. See `NoisyQuadratic.scheduled_moments`.

    Attributes:
        rate_exponent: p; see `scaling.RATE_EXPONENTS`.
        share: see `GROWTHS`.
        stage_factor: a stage ends where the rate would have fallen by so much since its start.

    Raises:
        ValueError: for a rule by which no batch replaces a rate, or numbers outside their ranges.
    """

    rate_exponent: float
    share: float = 1.0
    stage_factor: float = DEFAULT_STAGE_FACTOR

    def __post_init__(self) -> None:
        if not self.rate_exponent > 0 or not 0 < self.share <= 1 or not self.stage_factor > 1:
            raise ValueError(
                f"rate_exponent={self.rate_exponent}, share={self.share}, stage_factor={self.stage_factor}: the "
                "exponent is above 0, the share above 0 and at most 1, the factor above 1."
            )

    @property
    def exponent(self) -> float:
        """The batch is so many powers of 1 / f."""
        return self.share / self.rate_exponent

    def rate_factor(self, size: int, first: int) -> float:
        """What the decaying rate is multiplied by at a batch of `size`: (size / first)^p."""
        return (size / first) ** self.rate_exponent

    def stages(
        self, decay: Callable[[int], float], total: int, *, start: int, end: int, largest: int
    ) -> list[tuple[int, int]]:
        """(first sample, batch) of each later stage of a run whose first batch is `total`.

        Stage k begins at the first sample where the decay is at most stage_factor^-k of what it is at `start`. The
        batch is rounded there, and at most `largest`; a stage is left out if its batch is that of the one before, or
        the run may end in one step.

        Args:
            decay: samples seen -> factor of the peak rate, above 0 at `start` and never rising after it.
            total: samples per step of the first stage.
            start: of the decay: where the warmup ends.
            end: of the run.
            largest: batch allowed.

        Raises:
            ValueError: if the decay rises, or is 0 from the start.

        >>> growth = Growth(rate_exponent=1.0)
        >>> growth.stages(lambda samples: 1 - samples / 800, 10, start=0, end=800, largest=35)
        [(400, 20), (600, 35)]
        """
        self._require_falling(decay, start, end)
        first, found, size = decay(start), list[tuple[int, int]](), total
        while size < largest:
            number = self._next(total, size, largest)
            place = _first_at_most(decay, first * self.stage_factor**-number, start, end)
            if place is None:
                break
            left = decay(place) / first  # it may fall by several stages at once
            grown = max(self._grown(total, number, largest), self._grown(total, self._begun(left), largest))
            if size + grown > end - place:  # the step under way at this place may end so much later
                break
            found.append((place, grown))
            size = grown
        return found

    def _next(self, total: int, size: int, largest: int) -> int:
        """The first stage with a batch above `size`, which is below `largest`; thousands of small ones have none."""
        number = max(math.floor(math.log((size + 0.5) / total) / self.exponent / math.log(self.stage_factor)) - 1, 1)
        while self._grown(total, number, largest) <= size:
            number += 1
        return number

    def _begun(self, left: float) -> float:
        """The last stage that has begun where so much of the rate is left."""
        return math.floor(math.log((1 + _ROUNDING) / left) / math.log(self.stage_factor)) if left > 0 else math.inf

    def _grown(self, total: int, number: float, largest: int) -> int:
        if number * self.exponent * math.log(self.stage_factor) > math.log(largest / total) + 1:  # may be beyond floats
            return largest
        return min(round(total * self.stage_factor ** (number * self.exponent)), largest)

    @staticmethod
    def _require_falling(decay: Callable[[int], float], start: int, end: int) -> None:
        if not decay(start) > 0:
            raise ValueError(f"The rate is 0 from {start:,} samples on: a batch grows in place of a rate that falls.")
        places = [start + (end - 1 - start) * number // _PLACES for number in range(_PLACES + 1)]
        for before, after in itertools.pairwise(places):
            if decay(after) > decay(before) * (1 + _ROUNDING):
                raise ValueError(
                    f"The rate rises from {decay(before):.6g} of its peak after {before:,} samples to "
                    f"{decay(after):.6g} after {after:,}: a batch grows in place of a rate that falls."
                )


def _first_at_most(decay: Callable[[int], float], factor: float, start: int, end: int) -> int | None:
    """The first sample before `end` at which a falling decay is at most `factor`, by bisection; None: there is none."""
    limit = factor * (1 + _ROUNDING)
    low, high = start, end - 1
    if decay(high) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decay(middle) <= limit else (middle + 1, high)
    return low

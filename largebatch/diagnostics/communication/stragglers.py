"""Which rank is slower than the others, step after step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IN_A_ROW = 3


@dataclass(frozen=True)
class RankTimes:
    """One step as each rank spent it, waits for other ranks left out.

    Attributes:
        own_s: seconds, [ranks].
        usual_s: median of the other ranks, times what the rank has more samples than they, [ranks].
    """

    own_s: tuple[float, ...]
    usual_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as long as usual each rank took, [ranks]."""
        return tuple(own / usual for own, usual in zip(self.own_s, self.usual_s, strict=True))

    @property
    def slowest_rank(self) -> int:
        """The one with the largest ratio."""
        return int(np.argmax(self.ratios))


def compare_ranks(own_s: Sequence[float], num_samples: Sequence[int]) -> RankTimes:
    """Hold the time of every rank against the median of the others.

    A rank with twice the samples may take twice the time. One with fewer may take as long as the others: what a step
    costs besides its samples would make it look slow.

    Args:
        own_s: seconds of the step on each rank without waits for others, above 0, [ranks], 2 or more.
        num_samples: of the step on each rank, [ranks].

    >>> compare_ranks([2.0, 2.0, 5.0, 2.0], [8, 8, 8, 8]).ratios
    (1.0, 1.0, 2.5, 1.0)
    >>> compare_ranks([4.0, 2.0], [16, 8]).ratios  # 16 samples in 4 s, 8 in 2 s
    (1.0, 0.5)
    """
    times, samples = np.asarray(own_s, dtype=float), np.asarray(num_samples, dtype=float)
    more = np.maximum(samples / _medians_of_others(samples), 1)
    return RankTimes(tuple(times.tolist()), tuple((_medians_of_others(times) * more).tolist()))


def _medians_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the median of all but itself, in the time of one sort."""
    order = np.argsort(values, kind="stable")
    ordered, place = values[order], np.argsort(order, kind="stable")
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # of the others; from its own place on they move up
    return (ordered[low + (place <= low)] + ordered[high + (place <= high)]) / 2


class StragglerWatch:
    """Tells a slow rank from one that lost a moment: by `IN_A_ROW` measurements in a row.

    A rank that was named is named again only after it was not slow in as many measurements in a row, after the second
    time in twice as many, and so on: a machine that is only restless does not fill the screen.

    Args:
        ratio: times of others, see `RankTimes.ratios`, above which a rank is slow.
        least_s: seconds above them below which it is not.
    """

    def __init__(self, *, ratio: float, least_s: float = 0.0) -> None:
        self._ratio = ratio
        self._least_s = least_s
        self._slow_in_a_row: dict[int, int] = {}
        self._good_in_a_row: dict[int, int] = {}  # of ranks that were named and have not recovered
        self._times_named: Counter[int] = Counter()

    def add(self, times: RankTimes) -> list[int]:
        """Take a measurement; the ranks to be named by it, the slowest first."""
        slow = {
            rank
            for rank, (own, usual) in enumerate(zip(times.own_s, times.usual_s, strict=True))
            if own > self._ratio * usual and own - usual > self._least_s
        }
        self._slow_in_a_row = {rank: self._slow_in_a_row.get(rank, 0) + 1 for rank in slow}
        counts = {rank: 0 if rank in slow else count + 1 for rank, count in self._good_in_a_row.items()}
        self._good_in_a_row = {rank: count for rank, count in counts.items() if count < self._until_recovered(rank)}
        found = [
            rank for rank, count in self._slow_in_a_row.items() if count >= IN_A_ROW and rank not in self._good_in_a_row
        ]
        self._good_in_a_row |= dict.fromkeys(found, 0)
        self._times_named.update(found)
        return sorted(found, key=lambda rank: -times.ratios[rank])

    def _until_recovered(self, rank: int) -> int:
        return IN_A_ROW * 2 ** (self._times_named[rank] - 1)

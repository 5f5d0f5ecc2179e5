"""Detect ranks that are slower than the others over many steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IN_A_ROW = 3


@dataclass(frozen=True)
class RankTimes:
    """Time of one step on each rank, without waits for other ranks.

    Attributes:
        own_s: seconds, [ranks].
        usual_s: median of the other ranks, scaled up if the rank has more samples than they have, [ranks].
    """

    own_s: tuple[float, ...]
    usual_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Own time over usual time of each rank, [ranks]."""
        # A usual time of 0, below the clock's resolution, says nothing about any rank.
        return tuple(own / usual if usual else 1.0 for own, usual in zip(self.own_s, self.usual_s, strict=True))

    @property
    def slowest_rank(self) -> int:
        """The rank with the largest ratio."""
        return int(np.argmax(self.ratios))


def compare_ranks(own_s: Sequence[float], num_samples: Sequence[int]) -> RankTimes:
    """Compare the time of every rank with the median of the others.

    A rank with twice the samples may take twice the time. A rank with fewer samples may take as long as the others,
    because the fixed cost of a step would otherwise make it look slow.

    Args:
        own_s: seconds of the step on each rank without waits for others, above 0, [ranks], 2 or more.
        num_samples: samples of the step on each rank, [ranks].

    >>> compare_ranks([2.0, 2.0, 5.0, 2.0], [8, 8, 8, 8]).ratios
    (1.0, 1.0, 2.5, 1.0)
    >>> compare_ranks([4.0, 2.0], [16, 8]).ratios  # 16 samples in 4 s, 8 in 2 s
    (1.0, 0.5)
    """
    times, samples = np.asarray(own_s, dtype=float), np.asarray(num_samples, dtype=float)
    more = np.maximum(samples / _medians_of_others(samples), 1)
    return RankTimes(tuple(times.tolist()), tuple((_medians_of_others(times) * more).tolist()))


def _medians_of_others(values: np.ndarray) -> np.ndarray:
    """Median of all other values for each value, in the time of one sort."""
    order = np.argsort(values, kind="stable")
    ordered, place = values[order], np.argsort(order, kind="stable")
    low, high = (len(values) - 2) // 2, (len(values) - 1) // 2  # indices among the others, before removing the value
    return (ordered[low + (place <= low)] + ordered[high + (place <= high)]) / 2


class StragglerWatch:
    """Reports a rank as slow after `IN_A_ROW` slow measurements in a row, so that a short delay does not count.

    A reported rank is reported again only after it was not slow in as many measurements in a row. The required number
    doubles with each report, so that a noisy machine does not flood the log.

    Args:
        ratio: a rank is slow above this value of `RankTimes.ratios`.
        least_s: a rank is not slow if it exceeds the usual time by fewer seconds.
    """

    def __init__(self, *, ratio: float, least_s: float = 0.0) -> None:
        self._ratio = ratio
        self._least_s = least_s
        self._slow_in_a_row: dict[int, int] = {}
        self._good_in_a_row: dict[int, int] = {}  # of reported ranks that have not recovered
        self._times_named: Counter[int] = Counter()

    def add(self, times: RankTimes) -> list[int]:
        """Add a measurement; returns the ranks to report, the slowest first."""
        slow = {
            rank
            for rank, (own, usual) in enumerate(zip(times.own_s, times.usual_s, strict=True))
            if own > self._ratio * usual > 0 and own - usual > self._least_s
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

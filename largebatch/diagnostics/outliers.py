"""One-sided outliers of a series: an upper limit from its median and its median absolute deviation (MAD).

Both tolerate outliers in up to half of the values. So a few spikes, or the steep start of training, do not widen the
limit, as they would with mean and standard deviation. One-sided, because a fast fall of the loss is no fault.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable

FEWEST_VALUES = 20
"""Fewest values for a limit: the MAD of fewer is too uncertain."""
SMALLEST_SPREAD = 0.01
"""Lower bound of the MAD relative to |median|, so that rounding in a constant series is not a spike."""


def upper_limit(values: Collection[float], threshold: float) -> float:
    """Median + threshold * MAD, with MAD the median of |value - median|, but at least `SMALLEST_SPREAD` * |median|.

    Infinite for fewer than `FEWEST_VALUES` values, and if median and MAD are both 0. For normal values a MAD is 0.67
    standard deviations.

    Args:
        values: finite numbers.
        threshold: number of MADs above the median.

    >>> upper_limit([1.0, 2.0, 3.0, 4.0, 100.0] * 4, 5.0)  # deviations from 3: 2, 1, 0, 1, 97
    8.0
    """
    if len(values) < FEWEST_VALUES:
        return math.inf
    median = statistics.median(values)
    mad = statistics.median([abs(value - median) for value in values])
    spread = max(mad, SMALLEST_SPREAD * abs(median))
    return median + threshold * spread if spread > 0 else math.inf


class RecentValues:
    """The newest good values of a series, and the limit for the next one.

    Args:
        window: number of values to keep, `FEWEST_VALUES` or more.
        threshold: MADs above the median beyond which a value is an outlier; None: only non-finite values are.

    Raises:
        ValueError: if an argument is not as described.

    >>> series = RecentValues(window=20, threshold=5.0)
    >>> series.load([1.0, 2.0, 3.0, 4.0, 100.0] * 4)
    >>> series.limit, series.is_outlier(8.0), series.is_outlier(8.1), series.is_outlier(float("nan"))
    (8.0, False, True, True)
    """

    def __init__(self, *, window: int, threshold: float | None) -> None:
        if window < FEWEST_VALUES:
            raise ValueError(f"window={window}: a limit needs {FEWEST_VALUES} values. Keep at least that many.")
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold:g}: a number of MADs above 0, or None for no limit.")
        self._values: deque[float] = deque(maxlen=window)
        self._threshold = threshold
        self._limit: float | None = None

    @property
    def limit(self) -> float:
        """The largest value that is not an outlier; infinite if there is no limit yet or at all."""
        if self._limit is None:
            self._limit = math.inf if self._threshold is None else upper_limit(self._values, self._threshold)
        return self._limit

    def is_outlier(self, value: float) -> bool:
        """Whether the value is not finite, or above the limit."""
        return not math.isfinite(value) or value > self.limit

    def add(self, value: float) -> None:
        """Add a good value; the oldest one drops out of the window."""
        assert math.isfinite(value)
        self._values.append(value)
        self._limit = None

    def values(self) -> list[float]:
        """Oldest first."""
        return list(self._values)

    def load(self, values: Iterable[float]) -> None:
        """Restore from `values`, as the property returns them; only the newest `window` are kept."""
        self._values.clear()
        self._values.extend(values)
        self._limit = None

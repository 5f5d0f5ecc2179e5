"""The largest size that fits, by doubling and bisection. No torch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence


def largest_fitting(sizes: Sequence[int], start: int, fits: Callable[[int], bool]) -> int | None:
    """The largest of the sizes that fits; None: none does. What is returned has been tried, and so has the next one.

    From `start` it doubles until a size does not fit, or halves until one does; then it bisects. So no size is tried
    that is more than twice the largest that fits, but for those of which there is none between, and for `start`.

    Args:
        sizes: ascending.
        start: one of them.
        fits: tries a size; whatever is above one that does not fit does not fit.

    >>> tried = []
    >>> largest_fitting(range(1, 101), 4, lambda size: tried.append(size) or size <= 21), tried
    (21, [4, 8, 16, 32, 24, 20, 22, 21])
    """
    low, high, at = -1, len(sizes), bisect_left(sizes, start)  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        if fits(sizes[at]):
            low = at
        else:
            high = at
        if high == len(sizes):
            wanted = bisect_right(sizes, 2 * sizes[low]) - 1
        elif low < 0:
            wanted = bisect_right(sizes, sizes[high] // 2) - 1
        else:
            wanted = bisect_right(sizes, (sizes[low] + sizes[high]) // 2) - 1
        at = min(max(wanted, low + 1), high - 1)
    return sizes[low] if low >= 0 else None

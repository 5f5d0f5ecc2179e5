"""Where a run lies among those that it is predicted from."""

from __future__ import annotations

from collections.abc import Sequence

MEASURED, INTERPOLATED, EXTRAPOLATED = "measured", "interpolated", "extrapolated"


def kind_of(size: int, measured: Sequence[int]) -> str:
    """Where a batch size lies among the measured ones.

    >>> [kind_of(size, [32, 128]) for size in (32, 64, 256)]
    ['measured', 'interpolated', 'extrapolated']
    """
    if size in measured:
        return MEASURED
    return INTERPOLATED if measured and min(measured) < size < max(measured) else EXTRAPOLATED

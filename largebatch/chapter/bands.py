"""Means over seeds, and how well a few seeds know them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Band(NamedTuple):
    """A mean and its 95 % interval, each [n]; one seed has no interval."""

    mean: list[float]
    low: list[float] | None
    high: list[float] | None


def band_of_mean(values: npt.ArrayLike, *, of_logarithms: bool = False) -> Band:
    """Mean over the first axis of `values` [seeds, n], with Student's interval for so many independent seeds.

    With `of_logarithms` the geometric mean of positive values: its interval stays positive on a logarithmic axis.

    >>> band_of_mean([[1.0], [3.0]])  # 2 +- 12.706 x sqrt(2) / sqrt(2)
    Band(mean=[2.0], low=[-10.70...], high=[14.70...])
    >>> band_of_mean([[2.0]])
    Band(mean=[2.0], low=None, high=None)
    """
    rows = np.asarray(values, dtype=np.float64)
    back = np.exp if of_logarithms else np.asarray
    rows = np.log(rows) if of_logarithms else rows
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return Band(back(mean).tolist(), None, None)
    from scipy.special import stdtrit

    half = stdtrit(len(rows) - 1, 0.975) * rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return Band(back(mean).tolist(), back(mean - half).tolist(), back(mean + half).tolist())

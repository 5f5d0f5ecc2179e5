"""Means over seeds, and how well a few seeds know them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.bootstrap import LEAST_SEEDS


class Band(NamedTuple):
    """A mean and its 95 % interval, each [n]; fewer than three seeds have no interval."""

    mean: list[float]
    low: list[float] | None
    high: list[float] | None


def band_of_mean(
    values: npt.ArrayLike, *, of_logarithms: bool = False, within: tuple[float, float] = (-math.inf, math.inf)
) -> Band:
    """Mean over the first axis of `values` [seeds, n], with Student's interval for so many independent seeds.

    With `of_logarithms` the geometric mean of positive values: its interval stays positive on a logarithmic axis.
    `within` are the bounds of the quantity, 0 and 1 for a share.

    >>> band_of_mean([[1.0], [2.0], [3.0]], within=(0.0, 4.0))  # 2 +- 4.303 x sqrt(1/3)
    Band(mean=[2.0], low=[0.0], high=[4.0])
    >>> band_of_mean([[2.0], [4.0]])
    Band(mean=[3.0], low=None, high=None)
    """
    rows = np.asarray(values, dtype=np.float64)
    back = np.exp if of_logarithms else np.asarray
    rows = np.log(rows) if of_logarithms else rows
    mean = rows.mean(axis=0)
    if len(rows) < LEAST_SEEDS:
        return Band(back(mean).tolist(), None, None)
    from scipy.special import stdtrit

    half = stdtrit(len(rows) - 1, 0.975) * rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    low, high = (np.clip(back(end), *within).tolist() for end in (mean - half, mean + half))
    return Band(back(mean).tolist(), low, high)

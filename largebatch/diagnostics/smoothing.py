"""Exponential means without bias towards the first value."""

from __future__ import annotations

import numpy as np


def smooth(y: np.ndarray, span: float) -> np.ndarray:
    """Exponential mean over about `span` values, unbiased at the start; NaN has no weight.

    mean_i = sum_j k^(i-j) y_j / sum_j k^(i-j) with k = 1 - 1/span, over the j <= i that are not NaN.

    >>> smooth(np.array([2.0, np.nan, 5.0]), 2.0).tolist()  # (2/4 + 5) / (1/4 + 1)
    [2.0, 2.0, 4.4]
    """
    keep = 1 - 1 / max(span, 1)
    total = weight = 0.0
    means = np.full(len(y), np.nan)
    for i, value in enumerate(y):
        seen = not np.isnan(value)
        total = keep * total + (value if seen else 0.0)
        weight = keep * weight + seen
        means[i] = total / weight if weight else np.nan
    return means

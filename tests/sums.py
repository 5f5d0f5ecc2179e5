"""Comparison of sums that may be 0 but for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same_sums(found: Any, expected: Any, *, terms: float, digits: float = 1e-12, name: str = "") -> None:
    """Every entry differs by at most `digits` times `terms`, the size of what was added to it.

    The size of the sum itself does not count: terms that cancel leave their rounding, which is another one on another
    processor, with another order or another number of threads.
    """
    np.testing.assert_allclose(found, expected, rtol=0, atol=digits * terms, err_msg=name)

"""Checks of arguments that the closed forms share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[np.floating]


def vector(name: str, values: Numbers | float, *, length: int | None = None) -> Float64Array:
    """`values` as float64 [n]; a single number stands for `length` equal ones.

    Raises ValueError if they are not finite, not a vector, or not `length` of them.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim == 0 and length is not None:
        numbers = np.full(length, float(numbers))
    if numbers.ndim != 1 or len(numbers) == 0 or (length is not None and len(numbers) != length):
        expected = "at least 1 number" if length is None else f"{length} numbers"
        raise ValueError(f"{name} has the shape {list(numbers.shape)}: it must be a list of {expected}.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}={numbers.tolist()}: all numbers must be finite.")
    return numbers


def require_rate(lr: float) -> None:
    """Raises ValueError unless `lr` is a positive number."""
    if not 0 < lr < np.inf:
        raise ValueError(f"lr={lr}: a learning rate must be positive.")


def require_batch(global_batch_size: float, num_samples: int | None = None) -> None:
    """Raises ValueError unless the batch has a sample, and no more than `num_samples`."""
    if global_batch_size < 1 or (num_samples is not None and global_batch_size > num_samples):
        limit = "" if num_samples is None else f", and without replacement at most {num_samples}"
        raise ValueError(f"global_batch_size={global_batch_size}: a batch has at least 1 sample{limit}.")

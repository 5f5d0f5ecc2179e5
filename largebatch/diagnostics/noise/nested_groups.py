"""Sums of samples in nested groups: one pass over the samples serves every batch size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def doubling_sizes(num_samples: int) -> list[int]:
    """Batch sizes 1, 2, 4, ... up to half of the set.

    >>> doubling_sizes(10)
    [1, 2, 4]
    """
    return [2**power for power in range(max(num_samples // 2, 0).bit_length())]


def require_nested(batch_sizes: Sequence[int], *, num_samples: int) -> None:
    """Check that each batch size divides the next, and that batches can be drawn without replacement.

    Raises:
        ValueError: if a size does not divide the next, the last exceeds `num_samples`, or fewer than 2 lie below it.
    """
    shown = f"batch_sizes={list(batch_sizes)}"
    for small, large in itertools.pairwise(batch_sizes):
        if small < 1 or large % small or large <= small:
            raise ValueError(
                f"{shown}: a batch of {large} is not made of whole batches of {small}. Each size must be a multiple of "
                "the previous one, such as 1, 10, 100 or 1, 2, 4, 8."
            )
    if batch_sizes and batch_sizes[-1] > num_samples:
        raise ValueError(
            f"{shown}: {batch_sizes[-1]} samples cannot be drawn without replacement from {num_samples}. Use sizes up "
            f"to {num_samples}, or more samples."
        )
    below = [size for size in batch_sizes if size < num_samples]
    if len(below) < 2:
        raise ValueError(
            f"{shown}: only {len(below)} below the {num_samples} samples. A slope needs 2 or more, and the "
            "batch of all samples does not vary. Add sizes, or use more samples."
        )


class NestedGroups:
    """Mean squared norm of the group means of a stream of vectors, for groups of several sizes.

    Vectors are added to the open group of the first size. A full group is measured, and its sum is added to the open
    group of the next size. For sizes that grow by a factor k, every vector is added about 1 + 1/k + 1/k^2 + ... times,
    regardless of their number. Memory holds at most one vector per size.

    Args:
        sizes: sizes of the groups, each a multiple of the previous one.

    >>> import torch
    >>> groups = NestedGroups([1, 2])
    >>> for number in (1.0, 3.0, -1.0, 1.0):
    ...     groups.add(torch.tensor([number]), 1)
    >>> groups.mean_sq_norms()  # (1 + 9 + 1 + 1)/4, and of the means 2 and 0
    [3.0, 2.0]
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)
        self._open: list[Tensor | None] = [None] * len(self._sizes)
        self._filled = [0] * len(self._sizes)
        self._totals: list[Tensor | float] = [0.0] * len(self._sizes)  # on the device, without synchronisation
        self._num_groups = [0] * len(self._sizes)

    def add(self, total: Tensor, count: int) -> None:
        """Add the sum of the next `count` vectors, a tensor that may be overwritten; no group may end inside it."""
        for level, size in enumerate(self._sizes):
            held = self._open[level]
            total = total if held is None else held.add_(total)
            self._filled[level] += count
            assert self._filled[level] <= size, "groups end between additions"
            if self._filled[level] < size:
                self._open[level] = total
                return
            self._totals[level] = self._totals[level] + (total @ total) / size**2
            self._num_groups[level] += 1
            self._open[level], self._filled[level], count = None, 0, size

    def mean_sq_norms(self) -> list[float]:
        """Mean of |group mean|^2 over the full groups of each size; NaN for a size without a full group."""
        totals = [total for total in self._totals if isinstance(total, Tensor)]
        read = iter(torch.stack(totals).tolist() if totals else ())  # one wait for the device
        return [next(read) / count if count else math.nan for count in self._num_groups]

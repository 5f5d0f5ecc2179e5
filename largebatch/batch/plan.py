"""The plan of one optimizer step: global batch -> micro-batches -> ranks.

A global batch is an ordered list of micro-batches. The topology only decides which rank computes which of them; each
rank owns a contiguous range.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: samples `offset` to `offset + size` of the global batch."""

    index: int
    offset: int
    size: int


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is computed on `world_size` ranks.

    Attributes:
        global_batch_size: samples per optimizer step.
        world_size: number of ranks.
        micro_batch_sizes: samples of every micro-batch of the step, in the order of the global batch.
        owners: the rank that computes each micro-batch; ascending.

    >>> plan = BatchPlan.solve(global_batch_size=10, world_size=2, max_micro_batch_size=3)
    >>> plan.micro_batch_sizes, plan.owners
    ((3, 2, 3, 2), (0, 0, 1, 1))
    >>> plan.micro_batches(1)
    (MicroBatch(index=2, offset=5, size=3), MicroBatch(index=3, offset=8, size=2))
    """

    global_batch_size: int
    world_size: int
    micro_batch_sizes: tuple[int, ...]
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        assert sum(self.micro_batch_sizes) == self.global_batch_size
        assert min(self.micro_batch_sizes) >= 1
        assert list(self.owners) == sorted(self.owners)
        assert set(self.owners) == set(range(self.world_size)), "every rank must take part in the all-reduce"

    @classmethod
    def solve(
        cls,
        *,
        global_batch_size: int,
        world_size: int,
        max_micro_batch_size: int | None = None,
        prefers_equal: bool = False,
    ) -> BatchPlan:
        """Split the batch evenly: ranks differ by at most one sample, and so do the micro-batches of a rank.

        Args:
            global_batch_size: samples per optimizer step, any integer >= `world_size`.
            world_size: number of ranks.
            max_micro_batch_size: the most samples that one forward pass may hold; None: a rank's whole share.
            prefers_equal: whether a rank whose micro-batches would differ takes more and smaller ones, if some number
                up to a quarter above the fewest (at least one more) makes them equal.

        Raises:
            ValueError: if a rank would have no sample, or an argument is below 1.
        """
        _require_positive(
            global_batch_size=global_batch_size, world_size=world_size, max_micro_batch_size=max_micro_batch_size
        )
        if global_batch_size < world_size:
            raise ValueError(
                f"A global batch of {global_batch_size} cannot be shared by {world_size} ranks: each needs at least "
                f"one sample per step. Use at most {global_batch_size} ranks or a batch of at least {world_size}."
            )
        sizes: list[int] = []
        owners: list[int] = []
        for rank, share in enumerate(_split_evenly(global_batch_size, world_size)):
            fewest = -(-share // (max_micro_batch_size or share))
            counts = range(fewest, fewest + max(1, fewest // 4) + 1) if prefers_equal and fewest > 1 else ()
            parts = _split_evenly(share, next((count for count in counts if share % count == 0), fewest))
            sizes += parts
            owners += [rank] * len(parts)
        return cls(global_batch_size, world_size, tuple(sizes), tuple(owners))

    @classmethod
    def pinned(cls, *, global_batch_size: int, world_size: int, micro_batch_size: int) -> BatchPlan:
        """Cut the batch every `micro_batch_size` samples on any number of ranks; the last micro-batch may be smaller.

        The boundaries, batch norm statistics and dropout masks are then the same on any topology.

        Raises:
            ValueError: if there are fewer micro-batches than ranks, or an argument is below 1.
        """
        _require_positive(global_batch_size=global_batch_size, world_size=world_size, micro_batch_size=micro_batch_size)
        full, rest = divmod(global_batch_size, micro_batch_size)
        sizes = (micro_batch_size,) * full + ((rest,) if rest else ())
        if len(sizes) < world_size:
            raise ValueError(
                f"A global batch of {global_batch_size} in micro-batches of {micro_batch_size} makes {len(sizes)}, "
                f"fewer than the {world_size} ranks: a rank without a micro-batch would idle. Use at most {len(sizes)} "
                f"rank{'s' * (len(sizes) > 1)}, a batch of at least {(world_size - 1) * micro_batch_size + 1}"
                + _smaller_micro_batch(global_batch_size, world_size)
            )
        shares = _split_evenly(len(sizes), world_size)
        owners = tuple(rank for rank, share in enumerate(shares) for _ in range(share))
        return cls(global_batch_size, world_size, sizes, owners)

    def micro_batches(self, rank: int) -> tuple[MicroBatch, ...]:
        """The micro-batches that `rank` computes, in order."""
        if rank not in self._known_micro_batches:  # needed several times per step
            first, last = self._index_range(rank)
            self._known_micro_batches[rank] = tuple(
                MicroBatch(index, self._offsets[index], self.micro_batch_sizes[index]) for index in range(first, last)
            )
        return self._known_micro_batches[rank]

    def rank_batch_size(self, rank: int) -> int:
        """Samples per optimizer step on `rank`."""
        first, last = self._index_range(rank)
        return self._offsets[last] - self._offsets[first]

    @property
    def grad_accum_steps(self) -> int:
        """Forward and backward passes per optimizer step, on the rank with the most."""
        return max(Counter(self.owners).values())

    @cached_property
    def _known_micro_batches(self) -> dict[int, tuple[MicroBatch, ...]]:
        return {}

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        return (0, *accumulate(self.micro_batch_sizes))

    def _index_range(self, rank: int) -> tuple[int, int]:
        """The micro-batches of `rank` as an index range, found by bisection: there may be 1,000 ranks."""
        return bisect_left(self.owners, rank), bisect_right(self.owners, rank)

    @property
    def max_micro_batch_size(self) -> int:
        """Samples of the largest micro-batch; activation memory grows with it."""
        return max(self.micro_batch_sizes)


def _split_evenly(total: int, parts: int) -> list[int]:
    """`total` as `parts` integers that differ by one at most, larger ones first."""
    size, extra = divmod(total, parts)
    return [size + 1] * extra + [size] * (parts - extra)


def _smaller_micro_batch(global_batch_size: int, world_size: int) -> str:
    if global_batch_size < world_size:
        return "."
    # The largest m with ceil(B / m) >= W.
    largest = global_batch_size if world_size == 1 else (global_batch_size - 1) // (world_size - 1)
    return f", or micro-batches of at most {max(largest, 1)}."


def _require_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1.")

"""The factorizations of a global batch to try: ranks x accumulation x micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.batch.plan import BatchPlan


@dataclass(frozen=True)
class Case:
    """One way to compute a global batch.

    Attributes:
        plan: global batch -> micro-batches -> ranks.
    """

    plan: BatchPlan

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.plan.world_size

    @property
    def shares_are_equal(self) -> bool:
        """Whether every rank computes as many samples as every other."""
        return len({self.plan.rank_batch_size(rank) for rank in range(self.plan.world_size)}) == 1

    @property
    def name(self) -> str:
        """Ranks and micro-batches in a few words.

        >>> Case(BatchPlan.solve(global_batch_size=10, world_size=2, max_micro_batch_size=3)).name
        '2 ranks: 3+2 | 3+2'
        """
        ranks = ["+".join(_run_lengths([part.size for part in self.plan.micro_batches(rank)]))
                 for rank in range(self.world_size)]  # fmt: skip
        return f"{self.world_size} rank{'s' if self.world_size > 1 else ''}: {' | '.join(ranks)}"


def choose_cases(
    *, global_batch_size: int, world_sizes: Sequence[int], micro: int | None, max_micro: int | None
) -> list[Case]:
    """The factorizations to try.

    With a pinned micro-batch only the number of ranks varies. Otherwise each number of ranks is tried with the cap of
    the config and with a half and a third of a rank's share, so that accumulation and ragged parts occur.

    Raises:
        ValueError: if a number of ranks does not fit the batch.

    >>> [case.name for case in choose_cases(global_batch_size=8, world_sizes=[1, 2], micro=None, max_micro=None)]
    ['1 rank: 8', '1 rank: 2x4', '1 rank: 2x3+2', '2 ranks: 4 | 4', '2 ranks: 2x2 | 2x2']
    """
    cases: dict[Case, None] = {}
    for world_size in world_sizes:
        if micro is not None:
            pinned = BatchPlan.pinned(
                global_batch_size=global_batch_size, world_size=world_size, micro_batch_size=micro
            )
            cases[Case(pinned)] = None
            continue
        share = -(-global_batch_size // world_size)
        for cap in (max_micro, -(-share // 2), -(-share // 3)):
            capped = min(cap or share, max_micro or share)
            plan = BatchPlan.solve(
                global_batch_size=global_batch_size, world_size=world_size, max_micro_batch_size=capped
            )
            cases[Case(plan)] = None
    return list(cases)


def _run_lengths(sizes: Sequence[int]) -> list[str]:
    """[3, 3, 2] -> ["2x3", "2"]."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and runs[-1][0] == size:
            runs[-1][1] += 1
        else:
            runs.append([size, 1])
    return [f"{count}x{size}" if count > 1 else f"{size}" for size, count in runs]

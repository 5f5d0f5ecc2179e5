"""All-gathers of small values, and the ranks whose value differs from the others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from largebatch.distributed.runtime import Runtime
from largebatch.distributed.sending import sent


def gather_ints(runtime: Runtime, values: Tensor) -> Tensor:
    """The int64 vector of every rank, [world size, len(values)], on the device; the same length on all ranks.

    One small all-reduce: the sum of matrices in which each rank fills its own row.
    """
    assert values.dtype == torch.int64
    table = torch.zeros((runtime.world_size, len(values)), dtype=torch.int64, device=runtime.device)
    table[runtime.rank] = values
    runtime.sum_in_place(table)
    return table


def gather_floats(runtime: Runtime, values: Sequence[float]) -> list[list[float]]:
    """The numbers of every rank, [world size][len(values)], in float64; the same length on all ranks."""
    table = torch.zeros((runtime.world_size, len(values)), dtype=torch.float64, device=runtime.device)
    table[runtime.rank] = sent(torch.tensor(values, dtype=torch.float64), runtime.device)
    runtime.sum_in_place(table)
    return cast("list[list[float]]", table.tolist())


def gather_texts(runtime: Runtime, text: str) -> list[str]:
    """The text of every rank, in the order of ranks."""
    own = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = gather_ints(runtime, torch.tensor([len(own)], device=runtime.device))[:, 0].tolist()
    table = torch.zeros((runtime.world_size, max(lengths)), dtype=torch.uint8, device=runtime.device)
    table[runtime.rank, : len(own)] = own.to(runtime.device)
    runtime.sum_in_place(table)
    return [bytes(row[:length].tolist()).decode() for row, length in zip(table.cpu(), lengths, strict=True)]


def gather_tensors(runtime: Runtime, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor of every rank, [world size, ...], bit for bit; the same shapes on all ranks. One all-reduce."""
    if not tensors:
        return []
    parts = [one.detach().contiguous().reshape(-1).view(torch.uint8) for one in tensors]
    table = torch.zeros((runtime.world_size, sum(map(len, parts))), dtype=torch.uint8, device=runtime.device)
    table[runtime.rank] = torch.cat(parts)
    runtime.sum_in_place(table)
    # Clones, because a view as another dtype needs aligned storage.
    columns = [column.reshape(-1).clone() for column in table.split([len(part) for part in parts], dim=1)]
    return [
        column.view(one.dtype).view(runtime.world_size, *one.shape)
        for one, column in zip(tensors, columns, strict=True)
    ]


@dataclass(frozen=True)
class Disagreement:
    """Ranks that differ from the most common value.

    Attributes:
        usual: the most common value as text; in a tie, the value of the lowest rank.
        usual_ranks: the ranks that have it.
        others: the value of every other rank, as text.
        has_majority: whether more than half of the ranks have the usual value. If not, either side may be at fault.
    """

    usual: str
    usual_ranks: tuple[int, ...]
    others: dict[int, str]
    has_majority: bool

    @property
    def first_rank(self) -> int:
        """The lowest rank that differs."""
        return min(self.others)

    def explain(self, what: str) -> str:
        """One sentence: which ranks have which value of `what`."""
        by_value: dict[str, list[int]] = {}
        for rank, value in self.others.items():
            by_value.setdefault(value, []).append(rank)
        odd = ", ".join(f"{named_ranks(held)} {_has(held)} {value}" for value, held in by_value.items())
        tie = "" if self.has_majority else " (no majority: either may be at fault)"
        return f"{what}: {odd}; {named_ranks(self.usual_ranks)} {_has(self.usual_ranks)} {self.usual}{tie}"


def disagreement(values: Sequence[object]) -> Disagreement | None:
    """The ranks that differ, given one value per rank; None if all are equal.

    >>> disagreement([7, 7, 8]).explain("step")
    'step: rank 2 has 8; ranks 0 and 1 have 7'
    """
    if len(set(values)) <= 1:  # first, because every step pays for it: cheap even with 1,000 ranks
        return None
    texts = [str(value) for value in values]
    usual, count = Counter(texts).most_common(1)[0]
    return Disagreement(
        usual=usual,
        usual_ranks=tuple(rank for rank, text in enumerate(texts) if text == usual),
        others={rank: text for rank, text in enumerate(texts) if text != usual},
        has_majority=2 * count > len(texts),
    )


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def named_ranks(ranks: Sequence[int]) -> str:
    """Ranks as words of a sentence; only the first few of many.

    >>> named_ranks([3]), named_ranks([0, 1, 4])
    ('rank 3', 'ranks 0, 1 and 4')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:6]))} and {len(ranks) - 6} more"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"

"""A sum whose order depends on the number of terms alone, not on who adds which of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Block(Generic[T]):
    """The sum of the terms `start` to `start + size`."""

    start: int
    size: int
    value: T


class PairwiseSum(Generic[T]):
    """Adds terms 0, 1, 2, ... in a binary tree: 0 + 1, 2 + 3, then their sums, and so on.

    Floating-point addition is not associative, so a sum that must come out bit for bit needs one order. This one can be
    shared: whoever holds a run of neighbouring terms adds what belongs together in the tree and passes on the blocks
    that are left, at most two for each level; pushing those in order gives the tree of all terms. It needs room for
    about log2(n) values, and its rounding error grows like log2(n) (Higham 1993, "The accuracy of floating point
    summation").

    Args:
        add: the sum of two values, the left one first.

    >>> whole = PairwiseSum(lambda left, right: f"({left}+{right})")
    >>> for term in range(5):
    ...     whole.push(Block(term, 1, str(term)))
    >>> whole.total()
    '(((0+1)+(2+3))+4)'
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self.blocks: list[Block[T]] = []

    def push(self, block: Block[T]) -> None:
        """Append the term or block that follows those pushed before."""
        assert not self.blocks or self.blocks[-1].start + self.blocks[-1].size == block.start, "terms come in order"
        self.blocks.append(block)
        while len(self.blocks) > 1 and self._are_siblings(*self.blocks[-2:]):
            right, left = self.blocks.pop(), self.blocks.pop()
            self.blocks.append(Block(left.start, 2 * left.size, self._add(left.value, right.value)))

    def total(self) -> T:
        """The sum of everything pushed, at least one term; what found no sibling is added from the right."""
        *others, last = self.blocks
        value = last.value
        for block in reversed(others):
            value = self._add(block.value, value)
        return value

    @staticmethod
    def _are_siblings(left: Block[T], right: Block[T]) -> bool:
        return left.size == right.size and left.start % (2 * left.size) == 0

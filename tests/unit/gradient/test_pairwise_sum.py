"""The order of a pairwise sum depends on the number of terms alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.gradient.pairwise_sum import Block, PairwiseSum


def tree(terms: range) -> PairwiseSum[Any]:
    """The blocks of some terms; a sum is the pair of its parts, so that its order shows."""
    total: PairwiseSum[Any] = PairwiseSum(lambda left, right: (left, right))
    for term in terms:
        total.push(Block(term, 1, term))
    return total


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(1, 200), st.lists(st.integers(0, 200), max_size=8))
def test_any_division_among_ranks_gives_the_tree_of_one(count: int, cuts: list[int]):
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    shared: PairwiseSum[Any] = PairwiseSum(lambda left, right: (left, right))
    for first, last in pairwise(bounds):
        blocks = tree(range(first, last)).blocks
        assert len(blocks) <= 2 * max(math.ceil(math.log2(count)), 1)
        for block in blocks:
            shared.push(block)
    assert shared.total() == tree(range(count)).total()


def test_the_tree_is_balanced_and_keeps_the_order():
    def depth(part: Any) -> int:
        return 0 if isinstance(part, int) else 1 + max(map(depth, part))

    def leaves(part: Any) -> list[int]:
        return [part] if isinstance(part, int) else [leaf for half in part for leaf in leaves(half)]

    for count in (1, 2, 3, 7, 8, 100, 128):
        total = tree(range(count)).total()
        assert depth(total) == math.ceil(math.log2(count))
        assert leaves(total) == list(range(count))


def test_one_is_not_lost_beside_many_small_terms():
    """The sum of 2^24 and 2^12 times 1 in float32-like steps: left to right every 1 is rounded away."""
    import numpy as np

    total: PairwiseSum[Any] = PairwiseSum(lambda left, right: np.float32(left + right))
    for term, value in enumerate([2.0**24] + [1.0] * 4095):
        total.push(Block(term, 1, np.float32(value)))
    assert abs(float(total.total()) - (2**24 + 4095)) <= 12

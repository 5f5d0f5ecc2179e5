"""The tree of an ordered sum over ranks: whose blocks go where, for any number of ranks, without processes."""

from __future__ import annotations

import pytest

from largebatch.batch.plan import BatchPlan
from largebatch.gradient.ordered_reduction import _sources, _target
from largebatch.gradient.pairwise_sum import Block, PairwiseSum


def added(left: str, right: str) -> str:
    return f"({left}+{right})"


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 7, 8, 13, 64])
def test_ranks_add_in_the_order_of_one_process(world_size, num_parts):
    total = world_size * num_parts - (num_parts > 1)  # the last rank may have one micro-batch less
    plan = BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=1)
    one: PairwiseSum[str] = PairwiseSum(added)
    for term in range(total):
        one.push(Block(term, 1, str(term)))
    sent: dict[int, list[Block[str]]] = {}
    received = []
    for rank in reversed(range(world_size)):  # whoever sends has a higher number
        blocks: PairwiseSum[str] = PairwiseSum(added)
        for part in plan.micro_batches(rank):
            blocks.push(Block(part.index, 1, str(part.index)))
        sources = list(_sources(plan, rank))
        for source, places in sources:
            assert _target(source) == rank
            theirs = sent.pop(source)
            assert [(block.start, block.size) for block in theirs] == [(place.start, place.size) for place in places]
            for block in theirs:
                blocks.push(block)
        received.append(len(sources))
        sent[rank] = blocks.blocks
    assert list(sent) == [0]
    assert blocks.total() == one.total()
    assert max(received) == (world_size - 1).bit_length()

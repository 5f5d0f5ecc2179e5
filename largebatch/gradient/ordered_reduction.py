"""The gradient of a global batch, summed in one order on any number of ranks: bit for bit the same, for audits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.transfer import receive, send
from largebatch.gradient.gradient_pieces import GradientPieces, Piece
from largebatch.gradient.pairwise_sum import Block, PairwiseSum
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.reductions import no_sync


class InOrder:
    """A `Reduction` that sums gradients over micro-batches in a tree that depends on the number of micro-batches alone.

    An all-reduce adds what each rank has added up before, so another number of ranks adds in another order and differs
    in the last bits. Here every micro-batch's gradient is a term of its own: a rank adds those that belong together in
    the tree (`PairwiseSum`), and passes on the blocks that are left, in order. Every rank gets the total of rank 0.

    Ranks, too, add up in a binary tree: neighbours, then pairs of neighbours, and so on, in log2(ranks) rounds. They
    send piece by piece, so that no rank holds another gradient as a whole.

    It costs, beyond the all-reduce that it replaces, memory for log2(micro-batches of a rank) gradients on each rank; a
    broadcast; and all overlap of communication and computation. Rank 0 receives log2(ranks) gradients where a rank's
    micro-batches are a power of 2, and up to 2 log2(micro-batches) times as many elsewhere.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        clock: is told that the rank waits.
        most_bytes: of a piece.
    """

    scale = 1

    def __init__(self, runtime: Runtime, model: nn.Module, clock: ReductionClock, *, most_bytes: int) -> None:
        self.model = model
        self._runtime, self._clock = runtime, clock
        self._gradients = GradientPieces(runtime.unwrap(model), most_bytes=most_bytes)
        self._plan: BatchPlan | None = None
        self._sources: list[tuple[int, list[Block[None]]]] = []

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step; the plan says who computes which of them."""
        if plan is not self._plan:
            self._plan, self._sources = plan, list(_sources(plan, self._runtime.rank))
        self._sum: PairwiseSum[list[Tensor]] = PairwiseSum(_add_lists)
        self._gradients.take()

    @contextlib.contextmanager
    def one_pass(self, index: int, *, is_last: bool) -> Iterator[None]:
        """Moves the gradient of micro-batch `index` from `.grad` into the sum; a parameter without one counts as 0."""
        with no_sync(self.model):
            yield
        self._sum.push(Block(index, 1, self._gradients.take()))

    def finish(self) -> None:
        """Put the total over all micro-batches and ranks into `.grad`."""
        self._clock.start()
        if self._runtime.world_size == 1:
            self._gradients.put(self._sum.total())
            return
        total = self._sum.blocks[0].value  # its memory: what it held is sent, or added up, before
        for piece in self._gradients.pieces:
            self._add_ranks(piece, total)
        for piece in self._gradients.pieces:
            values = piece.read(total)
            self._runtime.broadcast_tensor(values)
            piece.write(total, values)
        self._gradients.put(total)

    def _add_ranks(self, piece: Piece, total: list[Tensor]) -> None:
        """Add up one piece of all ranks; rank 0 writes the sum into `total`."""
        blocks: PairwiseSum[Tensor] = PairwiseSum(Tensor.add_)
        for block in self._sum.blocks:
            blocks.push(Block(block.start, block.size, piece.read(block.value)))
        for source, theirs in self._sources:
            values = blocks.blocks[0].value.new_empty(len(theirs), len(blocks.blocks[0].value))
            receive(values, source)
            for place, value in zip(theirs, values, strict=True):
                blocks.push(Block(place.start, place.size, value))
        if self._runtime.is_main:
            piece.write(total, blocks.total())
        else:
            send(torch.stack([block.value for block in blocks.blocks]), _target(self._runtime.rank))


def _target(rank: int) -> int:
    """The rank that adds what `rank` has added up: the lowest bit that is set is cleared."""
    return rank & (rank - 1)


def _sources(plan: BatchPlan, rank: int) -> Iterator[tuple[int, list[Block[None]]]]:
    """The ranks that send their blocks to `rank`, in order, with the blocks: of them and of all who sent to them."""
    distance = 1
    while rank % (2 * distance) == 0 and rank + distance < plan.world_size:
        first = rank + distance
        blocks: PairwiseSum[None] = PairwiseSum(lambda left, right: None)
        for source in range(first, min(first + distance, plan.world_size)):
            for part in plan.micro_batches(source):
                blocks.push(Block(part.index, 1, None))
        yield first, blocks.blocks
        distance *= 2


def _add_lists(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left

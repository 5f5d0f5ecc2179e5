"""The gradient of a global batch, summed in one order on any number of ranks: bit for bit the same, for audits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.flat_gradients import Flat, FlatGradients
from largebatch.gradient.pairwise_sum import Block, PairwiseSum
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.reductions import no_sync


class InOrder:
    """A `Reduction` that sums gradients over micro-batches in a tree that depends on the number of micro-batches alone.

    An all-reduce adds what each rank has added up before, so another number of ranks adds in another order and differs
    in the last bits. Here every micro-batch's gradient is a term of its own: a rank adds those that belong together in
    the tree (`PairwiseSum`), rank 0 collects the blocks that are left, in order, and every rank gets the total.

    It costs, beyond the all-reduce that it replaces, memory for log2(micro-batches of a rank) gradients on each rank,
    at most 2 log2(micro-batches of a rank) gradients sent by each rank to rank 0 one after another, a broadcast, and
    all overlap of communication and computation.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        clock: is told that the rank waits.
    """

    scale = 1

    def __init__(self, runtime: Runtime, model: nn.Module, clock: ReductionClock) -> None:
        self.model = model
        self._runtime, self._clock = runtime, clock
        self._gradients = FlatGradients(runtime.unwrap(model))
        self._sum = _empty_sum()

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step; the plan says who computes which of them."""
        self._plan = plan
        self._sum = _empty_sum()
        self._gradients.clear()

    @contextlib.contextmanager
    def one_pass(self, index: int, *, is_last: bool) -> Iterator[None]:
        """Moves the gradient of micro-batch `index` from `.grad` into the sum; a parameter without one counts as 0."""
        with no_sync(self.model):
            yield
        self._sum.push(Block(index, 1, self._gradients.read()))
        self._gradients.clear()

    def finish(self) -> None:
        """Put the total over all micro-batches and ranks into `.grad`."""
        self._clock.start()
        if self._runtime.world_size > 1:
            total = self._collect() if self._runtime.is_main else self._hand_over()
            for part in total:
                self._runtime.broadcast_tensor(part)
        else:
            total = self._sum.total()
        self._gradients.write(total)

    def _collect(self) -> Flat:
        for rank in range(1, self._runtime.world_size):
            for block in self._shape_of(rank):
                value = self._gradients.empty(self._runtime.device)
                for part in value:
                    self._runtime.receive(part, rank)
                self._sum.push(Block(block.start, block.size, value))
        return self._sum.total()

    def _hand_over(self) -> Flat:
        for block in self._sum.blocks:
            for part in block.value:
                self._runtime.send(part, 0)
        return self._gradients.empty(self._runtime.device)

    def _shape_of(self, rank: int) -> list[Block[None]]:
        """The blocks that `rank` is left with."""
        blocks: PairwiseSum[None] = PairwiseSum(lambda left, right: None)
        for part in self._plan.micro_batches(rank):
            blocks.push(Block(part.index, 1, None))
        return blocks.blocks


def _empty_sum() -> PairwiseSum[Flat]:
    return PairwiseSum(lambda left, right: [one + other for one, other in zip(left, right, strict=True)])

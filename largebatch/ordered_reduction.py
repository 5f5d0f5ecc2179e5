"""The gradient of a global batch, summed in one order on any number of ranks: bit for bit the same, for audits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from largebatch.batch import BatchPlan
from largebatch.pairwise import Block, PairwiseSum
from largebatch.runtime import Runtime

Flat = list[Tensor]


class OrderedReduction:
    """Sums gradients over micro-batches in a tree that depends on the number of micro-batches alone.

    An all-reduce adds what each rank has added up before, so another number of ranks adds in another order and differs
    in the last bits. Here every micro-batch's gradient is a term of its own: a rank adds those that belong together in
    the tree (`PairwiseSum`), rank 0 collects the blocks that are left, in order, and every rank gets the total.

    It costs, beyond the all-reduce that it replaces, memory for log2(micro-batches of a rank) gradients on each rank,
    at most 2 log2(micro-batches of a rank) gradients sent by each rank to rank 0 one after another, a broadcast, and
    all overlap of communication and computation.

    Args:
        runtime: the job.
        module: the unwrapped model.
    """

    def __init__(self, runtime: Runtime, module: nn.Module) -> None:
        self._runtime = runtime
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._dtypes = list(dict.fromkeys(parameter.dtype for parameter in self._parameters))
        self._sum = _empty_sum()

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step; the plan says who computes which of them."""
        self._plan = plan
        self._sum = _empty_sum()
        self._clear()

    def take(self, index: int) -> None:
        """Move the gradient of micro-batch `index` from `.grad` into the sum; a parameter without one counts as 0."""
        self._sum.push(Block(index, 1, self._flatten()))
        self._clear()

    def finish(self) -> None:
        """Put the total over all micro-batches and ranks into `.grad`."""
        if self._runtime.world_size > 1:
            total = self._collect() if self._runtime.is_main else self._hand_over()
            for part in total:
                self._runtime.broadcast_tensor(part)
        else:
            total = self._sum.total()
        for dtype, flat in zip(self._dtypes, total, strict=True):
            parameters = [parameter for parameter in self._parameters if parameter.dtype == dtype]
            parts = flat.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def _collect(self) -> Flat:
        for rank in range(1, self._runtime.world_size):
            for block in self._shape_of(rank):
                value = self._buffers()
                for part in value:
                    self._runtime.receive(part, rank)
                self._sum.push(Block(block.start, block.size, value))
        return self._sum.total()

    def _hand_over(self) -> Flat:
        for block in self._sum.blocks:
            for part in block.value:
                self._runtime.send(part, 0)
        return self._buffers()

    def _shape_of(self, rank: int) -> list[Block[None]]:
        """The blocks that `rank` is left with."""
        blocks: PairwiseSum[None] = PairwiseSum(lambda left, right: None)
        for part in self._plan.micro_batches(rank):
            blocks.push(Block(part.index, 1, None))
        return blocks.blocks

    def _flatten(self) -> Flat:
        return [
            torch.cat(
                [
                    (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().reshape(-1)
                    for parameter in self._parameters
                    if parameter.dtype == dtype
                ]
            )
            for dtype in self._dtypes
        ]

    def _buffers(self) -> Flat:
        counts = [
            sum(parameter.numel() for parameter in self._parameters if parameter.dtype == dtype)
            for dtype in self._dtypes
        ]
        device = self._runtime.device
        return [
            torch.empty(count, dtype=dtype, device=device) for count, dtype in zip(counts, self._dtypes, strict=True)
        ]

    def _clear(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _empty_sum() -> PairwiseSum[Flat]:
    return PairwiseSum(lambda left, right: [one + other for one, other in zip(left, right, strict=True)])

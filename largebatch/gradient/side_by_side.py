"""A rank's part of a gradient whose samples are coupled by batch norm over the whole global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import MicroBatchSource, forward, micro_batch_key
from largebatch.gradient.coupled_losses import differentiate_coupled_loss, require_representations
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.reductions import Reduction
from largebatch.losses.coupled import is_coupled


class SideBySide:
    """With batch norm over the whole global batch; any loss, coupled ones included. A `LocalPass`.

    The micro-batches of this rank run forward side by side, and one backward pass goes through all of them: all are in
    memory at once. Ranks are to be summed `Afterwards`: DDP's buckets would mix with the collectives of the batch norms
    in an order that ranks with unequal numbers of micro-batches do not share.

    Args:
        runtime: the job.
        module: the unwrapped model, and the one of `norms`.
        loss: sums per sample.
        norms: the batch norms of the model.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, loss: Any, norms: ExactBatchNorm) -> None:
        self.loss, self._runtime, self._module, self._norms = loss, runtime, module, norms
        self._couples = is_coupled(loss)

    def __call__(
        self, micro_batches: Iterator[Any], *, plan: BatchPlan, weight: float, random_key: int, reduction: Reduction
    ) -> Tensor:
        """See `LocalPass`."""
        own = list(micro_batches)
        result_of = self._represent if self._couples else self._loss_sum
        parts: list[Tensor] = self._norms.forward_all([self._seeded(result_of, part, random_key) for part in own])
        if self._couples:
            loss_sum, gradients = differentiate_coupled_loss(self._runtime, self.loss, parts, own, plan)
            terms = [(part * gradient).sum() for part, gradient in zip(parts, gradients, strict=True)]
        else:
            loss_sum, terms = torch.stack([part.detach().double() for part in parts]).sum(), parts
        with reduction.one_pass(own[0].index, is_last=True):
            self._runtime.backward(torch.stack(terms).sum() * weight)
        return loss_sum

    def _seeded(
        self, function: Callable[[MicroBatchSource], Tensor], part: MicroBatchSource, random_key: int
    ) -> Callable[[], Tensor]:
        def run() -> Tensor:
            self._runtime.seed(micro_batch_key(random_key, part.index))
            return function(part)

        return run

    def _loss_sum(self, part: MicroBatchSource) -> Tensor:
        outputs = forward(self._module, self._runtime.place(part.inputs))
        total: Tensor = self.loss.loss_per_sample(outputs, self._runtime.place_tensor(part.targets)).sum()
        return total

    def _represent(self, part: MicroBatchSource) -> Tensor:
        return require_representations(forward(self._module, self._runtime.place(part.inputs)), part)

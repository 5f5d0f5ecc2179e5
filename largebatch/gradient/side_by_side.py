"""A rank's part of a gradient whose samples are coupled by batch norm over the whole global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import forward, micro_batch_key
from largebatch.gradient.coupled_losses import differentiate_coupled_loss, require_representations
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.step import Step, Weight


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
        couples: whether the loss compares samples.
    """

    is_joint = True

    def __init__(self, runtime: Runtime, module: nn.Module, loss: Any, norms: ExactBatchNorm, *, couples: bool) -> None:
        self.loss, self._runtime, self._module, self._norms, self._couples = loss, runtime, module, norms, couples

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`."""
        own = list(parts)
        result_of = self._represent if self._couples else self._loss_sum
        results: list[Tensor] = self._norms.forward_all([partial(self._seeded, result_of, step, part) for part in own])
        if self._couples:
            loss_sum, gradients = differentiate_coupled_loss(self._runtime, self.loss, results, own, step.plan)
            terms = [(result * gradient).sum() for result, gradient in zip(results, gradients, strict=True)]
        else:
            loss_sum, terms = torch.stack([result.detach().double() for result in results]).sum(), results
        with reduction.one_pass(own[0].index, is_last=True):
            self._runtime.backward(torch.stack(terms).sum() * weight)
        return loss_sum

    def _seeded(self, result_of: Callable[[Any], Tensor], step: Step, part: Any) -> Tensor:
        self._runtime.seed(micro_batch_key(step.random_key, part.index))
        return result_of(part)

    def _loss_sum(self, part: Any) -> Tensor:
        outputs = forward(self._module, self._runtime.place(part.inputs))
        total: Tensor = self.loss.loss_per_sample(outputs, self._runtime.place_tensor(part.targets)).sum()
        return total

    def _represent(self, part: Any) -> Tensor:
        return require_representations(forward(self._module, self._runtime.place(part.inputs)), part)

"""Norms of micro-batch gradients, from the backward passes that a step makes anyway."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch import BatchPlan
from largebatch.optim import l2_norm
from largebatch.runtime import PendingSum, Runtime


class MicroBatchNorms:
    """Measures sum_i b_i |g_i|^2 over all micro-batches of a global batch, and |g|^2 of the whole.

    g_i is the mean gradient of the b_i samples of micro-batch i; the mean of the g_i, weighted by b_i, is the gradient
    g that the step uses, before clipping. A hook on every parameter sees the fresh gradient of each backward pass,
    before it is added to others and before any reduction between ranks. Hooks are there only during the steps that are
    measured, which cost one pass over the gradients per micro-batch and a sum of two numbers over ranks.

    Where samples differ in units (masked tokens) a sample is still what counts: its gradient is the sum over its
    tokens, divided by the mean number of tokens of a sample of this global batch.

    Args:
        runtime: the job.
        module: the unwrapped model.
        scale: what the sum of all micro-batches' gradients is divided by to be g: the ranks, where DDP averages.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, *, scale: float) -> None:
        self._runtime = runtime
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._scale = scale
        self._loss_scale = 1.0
        self._sizes: list[int] = []
        self._global_batch_size = 0
        self._sq_norms: list[list[Tensor]] = []
        self._handles: list[Any] = []

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step."""
        self._sizes = [part.size for part in plan.micro_batches(self._runtime.rank)]
        self._global_batch_size = plan.global_batch_size
        self._loss_scale = float(self._runtime.loss_scale_state().get("scale", 1.0))
        self._sq_norms = [[] for _ in self._parameters]
        self._handles = [
            parameter.register_hook(partial(self._take, number)) for number, parameter in enumerate(self._parameters)
        ]

    def _take(self, number: int, gradient: Tensor) -> None:
        self._sq_norms[number].append(l2_norm(gradient.detach()).double().square())

    def finish(self) -> PendingSum:
        """(sum_i b_i |g_i|^2, |g|^2) over all ranks, maybe still on their way; call it before gradients are clipped."""
        for handle in self._handles:
            handle.remove()
        # A parameter that is left out of the graph has no norms at all: its gradient is 0.
        by_parameter = [torch.stack(norms) for norms in self._sq_norms if norms]
        sq_norms = torch.stack(by_parameter).sum(dim=0)
        share = self._global_batch_size / (self._scale * self._loss_scale)
        sizes = torch.tensor(self._sizes, dtype=torch.float64, device=sq_norms.device)
        weighted = (sq_norms / sizes).sum() * share**2
        norms = [l2_norm(one.grad).double() for one in self._parameters if one.grad is not None]
        own_part = torch.stack(norms).square().sum() / self._loss_scale**2 / self._runtime.world_size
        return self._runtime.start_sum(torch.stack([weighted, own_part]))

"""The gradient of a loss over the whole global batch, micro-batch by micro-batch, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.rows import gather_rows, sum_own_rows
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import MicroBatch, OneByOne, forward, micro_batch_key
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.snapshots import Buffers
from largebatch.gradient.step import Step, Weight
from largebatch.losses.coupled import CoupledLoss
from largebatch.losses.protocol import float32_or_wider


class Twice:
    """For a loss in which every sample of the global batch depends on all others; a `LocalPass`.

    First every micro-batch is run forward without a graph, and the representations R of the global batch are
    gathered. The loss L(R) follows, and its total derivative dL/dR, in which a sample counts both by its own loss and
    as a negative of others. If the loss has `loss_of_rows`, each rank computes the losses of its own samples, and
    their derivatives are summed over ranks; else every rank computes all. Then every micro-batch i is run forward
    again, as before but with a graph, with the loss <R_i, dL/dR_i>, whose gradient in the weights is the micro-batch's
    part of the chain rule: one by one, with one reduction, as for any other loss. Source: Gao et al. 2021, "Scaling
    deep contrastive learning batch size under memory limited setup", section 3.2.

    Both passes draw the same random numbers and start from the same buffers, so batch norm counts a micro-batch once.
    State of a model that is neither a parameter nor a buffer sees each micro-batch twice.

    It costs a second forward pass, a collective of the targets and two of the size of R (one without `loss_of_rows`),
    host memory for this rank's inputs of a step, and device memory for R; activations stay those of one micro-batch.

    Args:
        runtime: the job.
        module: the unwrapped model.
        loss: over the representations of the whole global batch.
        shared: whether each rank computes its part of the loss. False: all of it, in an order that no number of ranks
            changes.
    """

    is_joint = True

    def __init__(self, runtime: Runtime, module: nn.Module, loss: CoupledLoss, *, shared: bool = True) -> None:
        self.loss, self._runtime, self._module, self._shared = loss, runtime, module, shared
        self._chain_rule = OneByOne(runtime, _InnerProduct())

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`.

        Raises:
            ValueError: if the model returns no tensor [n, ...].
        """
        own = list(parts)
        represented = self._represent(step, own)
        loss_sum, gradients = differentiate_coupled_loss(
            self._runtime, self.loss, represented, own, step.plan, shared=self._shared
        )
        cached = (MicroBatch(part.inputs, rows, part.index) for part, rows in zip(own, gradients, strict=True))
        self._chain_rule(step, cached, weight, reduction)
        return loss_sum

    @torch.no_grad()
    def _represent(self, step: Step, own: Sequence[Any]) -> list[Tensor]:
        """Representations of each micro-batch, in order; buffers are as before afterwards."""
        # All buffers, not only running statistics: the second pass must start from the same state to compute the same.
        before, found = Buffers(self._module), []
        for part in own:
            self._runtime.seed(micro_batch_key(step.random_key, part.index))
            found.append(require_representations(forward(self._module, self._runtime.place(part.inputs)), part))
        before.put_back()
        return found


def differentiate_coupled_loss(
    runtime: Runtime,
    loss: CoupledLoss,
    represented: Sequence[Tensor],
    micro_batches: Sequence[Any],
    plan: BatchPlan,
    *,
    shared: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """The loss of the whole global batch and its total derivative in the representations of this rank.

    Args:
        runtime: the job.
        loss: over the representations of the whole global batch.
        represented: of each micro-batch of this rank, [n, ...]; graphs are left alone.
        micro_batches: this rank's part of the global batch, for the targets.
        plan: which part that is.
        shared: whether each rank computes the losses of its own samples alone, if the loss has `loss_of_rows`.

    Returns:
        The sum of the losses of this rank's samples, float64, and the derivative for each micro-batch, [n, ...].
    """
    counts = [plan.rank_batch_size(rank) for rank in range(runtime.world_size)]
    first = plan.micro_batches(runtime.rank)[0].offset
    rows = slice(first, first + counts[runtime.rank])
    own = torch.cat([part.detach() for part in represented])
    representations = gather_rows(runtime, own, counts).requires_grad_()
    own_targets = torch.cat([runtime.place_tensor(part.targets) for part in micro_batches])
    targets = gather_rows(runtime, own_targets, counts)
    loss_of_rows = getattr(loss, "loss_of_rows", None) if shared and runtime.world_size > 1 else None
    if loss_of_rows is None:
        losses = loss.loss_per_sample(representations, targets)
        (gradient,) = torch.autograd.grad(losses.sum(), representations)
        losses, gradient = losses[rows], gradient[rows]
    else:
        losses = loss_of_rows(representations, targets, rows)
        (gradient,) = torch.autograd.grad(losses.sum(), representations)
        gradient = sum_own_rows(runtime, float32_or_wider(gradient), counts)
    return losses.detach().double().sum(), list(gradient.split([len(part.targets) for part in micro_batches]))


def require_representations(outputs: Any, micro_batch: Any) -> Tensor:
    """What a model returned for a micro-batch.

    Raises:
        ValueError: if it is not a tensor [n, ...].
    """
    if isinstance(outputs, Tensor) and len(outputs) == len(micro_batch.targets):
        return outputs
    shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"The model returned {shape} for {len(micro_batch.targets)} samples: a coupled loss needs one tensor of "
        "representations, the first dimension of which counts samples. Return it from the model's forward."
    )


class _InnerProduct:
    """<R_i, dL/dR_i>: its gradient in the representations is what was cached."""

    def loss_per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).flatten(1).sum(dim=1)

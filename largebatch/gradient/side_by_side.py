"""The gradient of a global batch whose samples are coupled by batch norm over all of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import (
    GradientResult,
    MicroBatchSource,
    forward,
    micro_batch_key,
    no_sync,
    sum_gradients,
)
from largebatch.gradient.coupled_losses import differentiate_coupled_loss, require_representations
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.losses.coupled import is_coupled


def accumulate_exact_gradients(
    runtime: Runtime,
    model: nn.Module,
    loss: Any,
    micro_batches: Iterable[MicroBatchSource],
    *,
    norms: ExactBatchNorm,
    plan: BatchPlan,
    weight: float,
    random_key: int,
    clock: ReductionClock | None = None,
    ordered: None = None,
) -> GradientResult:
    """As `accumulate_gradients`, with batch norm over the whole global batch; any loss, coupled ones included.

    The micro-batches of this rank run forward side by side, and one backward pass goes through all of them. Then one
    all-reduce adds the gradients of the ranks, without an overlap: DDP's buckets would mix with the collectives of the
    batch norms in an order that ranks with unequal numbers of micro-batches do not share.

    Args:
        runtime: the job.
        model: as returned by `runtime.wrap`, and the one of `norms`; its gradients are zero or None.
        loss: sums per sample.
        micro_batches: this rank's part of the global batch; all of them are in memory at once.
        norms: the batch norms of the model.
        plan: which part that is.
        weight: the one normalisation, 1 / (samples, or valid tokens, of the whole global batch): ranks are added up.
        random_key: draws inside the model are keyed by it and by the micro-batch's index, not by the rank.
        clock: measures exposed communication: all of the gradient's.
        ordered: cannot be had: a micro-batch has no gradient of its own here.
    """
    started = time.perf_counter()
    own = list(itertools.islice(micro_batches, len(plan.micro_batches(runtime.rank))))
    data_s = time.perf_counter() - started
    module = runtime.unwrap(model)
    result_of = _represent if is_coupled(loss) else _loss_sum
    parts: list[Tensor] = norms.forward_all(
        [_seeded(runtime, micro_batch_key(random_key, part.index), result_of, module, loss, part) for part in own]
    )
    if is_coupled(loss):
        loss_sum, gradients = differentiate_coupled_loss(runtime, loss, parts, own, plan)
        terms = [(part * gradient).sum() for part, gradient in zip(parts, gradients, strict=True)]
    else:
        loss_sum, terms = torch.stack([part.detach().double() for part in parts]).sum(), parts
    with no_sync(model):
        runtime.backward(torch.stack(terms).sum() * weight)
    if clock is not None:
        clock.start()
    sum_gradients(runtime, module)
    return GradientResult(loss_sum, data_s, None if clock is None else clock.exposed_s())


def _seeded(runtime: Runtime, key: int, function: Callable[..., Tensor], *arguments: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        runtime.seed(key)
        return function(runtime, *arguments)

    return run


def _loss_sum(runtime: Runtime, module: nn.Module, loss: Any, part: MicroBatchSource) -> Tensor:
    outputs = forward(module, runtime.place(part.inputs))
    total: Tensor = loss.loss_per_sample(outputs, runtime.place_tensor(part.targets)).sum()
    return total


def _represent(runtime: Runtime, module: nn.Module, loss: Any, part: MicroBatchSource) -> Tensor:
    return require_representations(forward(module, runtime.place(part.inputs)), part)

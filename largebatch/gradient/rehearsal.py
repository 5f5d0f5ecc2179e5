"""The passes of a step without what ranks send each other: whether they fit into the memory of this rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.bucket_views import BucketViews
from largebatch.gradient.global_gradient import GlobalGradient
from largebatch.gradient.instruments import BeingComputed
from largebatch.gradient.out_of_memory import RESERVE_BYTES, MicroBatchTooLargeError, is_out_of_memory
from largebatch.gradient.reductions import Apart, Overlapped
from largebatch.gradient.snapshots import StepBuffers, preserving_buffers_and_rng
from largebatch.gradient.step import Step, Weight


class Rehearsal:
    """Takes this rank's passes of a step, sends no gradient, and tells whether there was memory for them.

    DDP reduces while the last backward pass computes: a rank that runs out of memory in it leaves the others in a
    collective that never ends. Here only the units of the global batch are counted together, before the first pass. So
    each rank may fail alone, and all can agree on what to do next.

    The memory is that of the step itself, less what a reduction takes: gradients that DDP would move into a bucket, as
    it does with those of a single micro-batch, are freed once they are computed.

    Args:
        runtime: the job.
        gradient: of the run, which raises where a step does not fit.
    """

    def __init__(self, runtime: Runtime, gradient: GlobalGradient) -> None:
        reduction = gradient.reduction
        self._runtime, self._module = runtime, runtime.unwrap(reduction.model)
        moves = isinstance(reduction, Overlapped) and isinstance(reduction.model, nn.parallel.DistributedDataParallel)
        # Not those that meet other ranks, measure, or remember: a step that fails is none.
        kept = [one for one in gradient.instruments if isinstance(one, (BucketViews, BeingComputed, StepBuffers))]
        leaving = _LeavesNoGradient(runtime, self._module, moves=moves)
        apart = Apart(reduction.model, scale=reduction.scale)
        self._gradient = replace(gradient, reduction=apart, instruments=[*kept, leaving])

    def __call__(self, step: Step) -> bool:
        """Whether the passes fit. Weights, buffers and generators are as before, and no gradient is left.

        Its micro-batches are taken from the run's; begin there again to have them for the step itself.
        """
        is_on_gpu, fits = self._runtime.device.type == "cuda", False
        reserve: Tensor | None = None
        try:
            if is_on_gpu:  # for the collectives behind a shortage
                reserve = torch.empty(RESERVE_BYTES, dtype=torch.uint8, device=self._runtime.device)
            with preserving_buffers_and_rng(self._module):
                self._gradient(step)
            fits = True
        except MicroBatchTooLargeError as error:
            fits = self._runtime.rank not in error.ranks
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: inside of it the error keeps everything alive that the passes had computed.
        del reserve
        self._module.zero_grad()
        if is_on_gpu and not fits:
            torch.cuda.empty_cache()
        return fits


class _LeavesNoGradient:
    """Frees gradients behind the passes, or where they have a place in buckets, at once: an instrument."""

    def __init__(self, runtime: Runtime, module: nn.Module, *, moves: bool) -> None:
        self._rank, self._moves = runtime.rank, moves
        self._parameters = [one for one in module.parameters() if one.requires_grad]

    def is_due(self, step: Step) -> bool:
        """Always."""
        return True

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        frees_at_once = self._moves and len(step.plan.micro_batches(self._rank)) == 1
        hooks = [one.register_post_accumulate_grad_hook(_free) for one in self._parameters if frees_at_once]
        try:
            yield parts
        finally:
            for hook in hooks:
                hook.remove()
            for one in self._parameters:
                one.grad = None


def _free(parameter: Tensor) -> None:
    parameter.grad = None

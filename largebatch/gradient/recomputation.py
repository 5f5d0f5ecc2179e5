"""Computes a gradient twice and compares the bits: a bit that flips in silence is found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.checksums import checksums
from largebatch.distributed.gather import gather_ints, named_ranks
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import LocalPass, MicroBatch, copies
from largebatch.gradient.reductions import Apart, Overlapped
from largebatch.gradient.snapshots import StepBuffers, preserving_buffers_and_rng
from largebatch.gradient.step import Step, Weight

_MOST_NAMED = 8


class Recomputation:
    """Lets each rank compute its own part of a step's gradient twice, and compares the bits before they are used.

    An instrument.

    The first pass is a rehearsal: all micro-batches of the rank, nothing sent, buffers and random generators put back
    afterwards. The second is the step itself. Since draws are keyed by micro-batch, both do the same arithmetic, and
    a processor, a memory or a GPU that is sound gives the same bits. Each pass leaves a 64-bit checksum per
    parameter (see `largebatch.distributed.checksums`), the second where the gradient leaves the rank: in DDP's
    bucket, before it is rounded or sent. One flipped bit always changes a checksum, whatever the number format.

    It finds what happens once: flips in memory, caches and arithmetic during either forward and backward pass of a
    checked step. It does not find what comes out wrong in the same way twice, or later: in the sum over ranks, the
    update, a checkpoint. An operation whose result depends on the order in which threads finish (on a GPU some backward
    passes, such as fused attention's) looks like a fault.

    A checked step takes 2.1 times the time of another one, data, update and communication included (medians of 97 pairs
    of a convnet on digits, 41 ms, batch 128 in micro-batches of 32, on one process and on two, on shared CPU cores; 1.7
    to 2.3 with other models and batches): with every 100th step checked about 1 % of a run. It keeps the micro-batches
    of the rank in memory and sums 16 bytes per rank. State of a model that is neither parameter nor buffer sees each
    micro-batch twice.

    Args:
        runtime: the job.
        local: how a rank computes its part.
        reduction: tells when that part is complete.
        step_buffers: those of the model that move once per step.
        every: steps between those that are computed twice.
    """

    def __init__(
        self, runtime: Runtime, local: LocalPass, reduction: Overlapped, step_buffers: StepBuffers, *, every: int
    ) -> None:
        self._runtime, self._local, self._every = runtime, local, every
        self._module, self._apart = runtime.unwrap(reduction.model), Apart(reduction.model, scale=reduction.scale)
        named = [(name, one) for name, one in self._module.named_parameters() if one.requires_grad]
        self._names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._is_compared = False  # whether the step that is being computed was rehearsed
        self._is_distributed = isinstance(reduction.model, nn.parallel.DistributedDataParallel)
        self._rehearsed = torch.zeros(len(named), dtype=torch.int64, device=runtime.device)
        self._real: list[Tensor] = []
        self._step_buffers = step_buffers
        reduction.on_departure.append(self._take)

    def is_due(self, step: Step) -> bool:
        """Every n-th step."""
        return step.is_due(self._every)

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`.

        Raises:
            RuntimeError: on every rank, if one of them computed different bits the second time.
        """
        kept = list(parts)
        self._rehearse(step, map(_copied, kept), weight)
        yield iter(kept)
        self._require_equal(step.number)

    def _rehearse(self, step: Step, parts: Iterator[Any], weight: Weight) -> None:
        """Compute the gradient of the step, remember its checksums, and leave nothing else behind."""
        had_gradients = [parameter.grad is not None for parameter in self._parameters]
        with preserving_buffers_and_rng(self._module):
            self._local(step, self._step_buffers.one_by_one(parts), weight, self._apart)
        self._rehearsed = self._of_gradients()
        self._real, self._is_compared = list(torch.zeros_like(self._rehearsed)), True
        for parameter, had_gradient in zip(self._parameters, had_gradients, strict=True):
            if not had_gradient:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def _take(self, bucket: Any) -> None:
        """Checksums of a bucket that DDP is about to send, in steps that were rehearsed."""
        if not self._is_compared:
            return
        for parameter, checksum in zip(bucket.parameters(), checksums(bucket.gradients()), strict=True):
            self._real[self._places[id(parameter)]] = checksum

    def _require_equal(self, step: int) -> None:
        self._is_compared = False
        if not self._is_distributed:
            self._real = list(self._of_gradients())
        differs = (self._rehearsed != torch.stack(self._real)).long()
        table = gather_ints(self._runtime, torch.stack([differs.sum(), differs.argmax()])).tolist()
        found = {rank: (count, self._names[first]) for rank, (count, first) in enumerate(table) if count}
        if found:
            raise RuntimeError(self._explain(found, step))

    def _of_gradients(self) -> Tensor:
        """Checksums of `.grad`, 0 where there is none."""
        return checksums([one.new_zeros(0) if one.grad is None else one.grad for one in self._parameters])

    def _explain(self, found: dict[int, tuple[int, str]], step: int) -> str:
        ranks = list(found)
        each = [
            f"rank {rank} in {name} ({count} of {len(self._names)} parameters differ)"
            for rank, (count, name) in list(found.items())[:_MOST_NAMED]
        ]
        more = f", and {len(ranks) - _MOST_NAMED} more" if len(ranks) > _MOST_NAMED else ""
        return (
            f"Step {step}: a gradient computed twice from the same samples, weights and random numbers came out with "
            f"different bits: {', '.join(each)}{more}. Either the hardware of {named_ranks(ranks)} computed something "
            "wrong, or an operation of the model does not give the same result twice. No weight was updated by this "
            "step, and nothing of it is saved. Resume from the last checkpoint; if the same rank is named again, do "
            "without its machine. If others are named, too, find the operation with "
            "torch.use_deterministic_algorithms(True), or set observers.recompute.every=null."
        )


def _copied(part: Any) -> MicroBatch:
    """A micro-batch with tensors of its own."""
    return MicroBatch(copies(part.inputs), part.targets.clone(), part.index, part.is_placeholder)

"""One sample, repeated to micro-batches of any size; and what lies ready on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data.device_feed import each
from largebatch.data.micro_batch import MicroBatchData
from largebatch.data.stored import stored_form
from largebatch.distributed.runtime import Inputs
from largebatch.run.loading import prefetch_of
from largebatch.run.parts import build_loader, keeps_steps
from largebatch.run.prepare import Prepared


class Repeating:
    """A `Loader` of one sample, again and again, in micro-batches of any size.

    Args:
        sample: as the model takes it.
        stored: the same as it lies ready on the device; None: it does not.
        depth: number of micro-batches that do.
    """

    def __init__(self, sample: MicroBatchData, stored: MicroBatchData | None, depth: int) -> None:
        self._sample, self._stored, self._depth = sample, stored, depth
        self._plan: BatchPlan | None = None
        self._ahead: list[Inputs | Tensor] = []

    def begin(self, plan: BatchPlan) -> None:
        """Take the sizes of `plan` from here on."""
        self._plan = plan
        self._ahead.clear()
        for _ in range(self._depth if self._stored else 0):
            assert self._stored is not None
            ready = _repeated(self._stored, plan.max_micro_batch_size)
            self._ahead += [each(ready.inputs, fake_like), fake_like(ready.targets)]

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[MicroBatchData]:
        """See `Loader`."""
        while True:
            assert self._plan is not None
            for part in self._plan.micro_batches(0):
                yield replace(_repeated(self._sample, part.size), index=part.index)

    def batches(self, ids: object, sizes: Sequence[int]) -> Iterator[MicroBatchData]:
        """See `EvaluationLoader`; from the third on a batch takes what the second takes."""
        return (_repeated(self._sample, size) for size in sizes[:2])

    def replan(self, plan: BatchRamp) -> None:
        """See `Loader`; nothing is ever short of memory here."""


def _repeated(sample: MicroBatchData, size: int) -> MicroBatchData:
    """The sample `size` times, without memory."""

    def expanded(part: Tensor) -> Tensor:
        return part[:1].expand(size, *part.shape[1:])

    return replace(sample, inputs=each(sample.inputs, expanded), targets=expanded(sample.targets))


def fake_like(tensor: Tensor) -> Tensor:
    """One of the same form, without numbers where the mode is on."""
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def repeating(prepared: Prepared, *, feeds_gpu: bool) -> Repeating:
    """The first sample of the run, again and again; with `feeds_gpu` micro-batches are prepared ahead on the device."""
    sample = _first_sample(prepared)
    if not feeds_gpu or keeps_steps(prepared):
        return Repeating(sample, None, 0)
    stored, _ = stored_form(prepared.train)
    depth = prefetch_of(prepared.config.data, prepared.train, feeds_gpu=True).value
    return Repeating(sample, _first_sample(replace(prepared, train=stored, augment=None)), depth)


def _first_sample(prepared: Prepared) -> MicroBatchData:
    plan = BatchPlan.solve(global_batch_size=1, world_size=1)
    loader = build_loader(prepared, 0, plan=plan, num_workers=0)
    return next(iter(loader.micro_batches(0, 1)))

"""Gradients of micro-batches add up in DDP's buckets: there is no second gradient of the model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.distributed.wrapping import give_zeros
from largebatch.gradient.bucket_order import BucketOrder
from largebatch.gradient.reductions import Afterwards, Overlapped, Reduction
from largebatch.gradient.step import Step, Weight


class BucketViews:
    """An instrument: the first micro-batch of a step finds gradients of zero in DDP's buckets, and adds to them.

    Without it `.grad` is None at first. Autograd then allocates a gradient of its own, and DDP copies it into the
    buckets in the last pass: with several micro-batches, a whole gradient more is alive while activations are.

    A parameter that no pass touches must not be stepped: decay and momentum would move it. `SkippedParameters` gives it
    no gradient (None) where passes may leave parameters out. Elsewhere each parameter is in the last pass: DDP raises
    otherwise.

    DDP lays its buckets out anew after the first gradient that it reduced. It would copy the old gradients into the new
    buckets, with both in memory. Here they are zeros that share one number, and the old buckets are free before.

    With a single micro-batch nothing is added up, so `.grad` stays None: a copy into the bucket costs less than a sum.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it; its gradients are taken away.
        reduction: `Overlapped`, or one that leaves `.grad` where it is; others have no use of buckets.
        order: knows whether DDP has reduced a gradient.
    """

    def __init__(self, runtime: Runtime, model: nn.Module, reduction: Reduction, order: BucketOrder) -> None:
        self._runtime, self._order = runtime, order
        self._is_overlapped, is_after = isinstance(reduction, Overlapped), isinstance(reduction, Afterwards)
        has_buckets = isinstance(model, nn.parallel.DistributedDataParallel)
        self._ddp = model if has_buckets and (self._is_overlapped or is_after) else None
        self._parameters = [one for one in model.parameters() if one.requires_grad]
        self._is_laid_out = False
        self._views = self._taken_views()

    def is_due(self, step: Step) -> bool:
        """In every step, where there are buckets."""
        return self._ddp is not None

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        if self._order.names and not self._is_laid_out:
            self._lay_out()
        if not self._is_overlapped or len(step.plan.micro_batches(self._runtime.rank)) > 1:
            for one, view in zip(self._parameters, self._views, strict=True):
                one.grad = view
            if found := [view for view in self._views if view is not None]:
                torch._foreach_zero_(found)
        yield parts
        if self._is_laid_out and self._views[0] is None:
            self._views = [one.grad for one in self._parameters]  # of the buckets, now that they are reduced

    def _lay_out(self) -> None:
        """Have DDP lay its buckets out now, as its next forward pass would. If one has done so, views are unknown."""
        self._views.clear()
        give_zeros(self._parameters)
        has_moved, self._is_laid_out = cast(Any, self._ddp).reducer._rebuild_buckets(), True
        self._views = self._taken_views()
        if not has_moved:
            self._views = [None for _ in self._parameters]

    def _taken_views(self) -> list[Tensor | None]:
        """The gradients that there are, which DDP made views of its buckets; none is left."""
        views = [one.grad for one in self._parameters]
        for one in self._parameters:
            one.grad = None
        return views

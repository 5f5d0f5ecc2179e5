"""The places of gradients in DDP's buckets: those of the run before, in the first step after a resume, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.gradient.reductions import Overlapped, Reduction
from largebatch.gradient.step import Step, Weight


class BucketOrder:
    """Notes the order in which gradients were first ready, by which DDP fills its buckets, and can have it filled so.

    An instrument.

    A process reduces its first gradient in one bucket, in the order in which the model names its parameters. DDP sees
    which gradients are ready when, and from the second step on fills buckets in that order. An all-reduce of three or
    more ranks adds a number up in an order that depends on its place in its bucket: another place, other last digits.
    A process that goes on with a run therefore has DDP fill its buckets before its first step as they were filled.

    Args:
        reduction: of those that are not `Overlapped`, nothing is noted: they have no buckets.

    Attributes:
        names: of the parameters, in that order; empty before the first step, and where there is no DDP.
    """

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction if isinstance(reduction, Overlapped) else None
        model = reduction.model if self._reduction else None
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        named = () if self._ddp is None else self._ddp.module.named_parameters()
        self._parameters = {name: one for name, one in named if one.requires_grad}
        self.names: list[str] = []

    def is_due(self, step: Step) -> bool:
        """In the first step, where DDP reduces."""
        return self._ddp is not None and not self.names

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`: notes the order, once."""
        seen: dict[str, None] = {}
        handles = [one.register_post_accumulate_grad_hook(self._noting(name, seen))
                   for name, one in self._parameters.items()]  # fmt: skip
        try:
            yield parts
        finally:
            for handle in handles:
                handle.remove()
        self.names = list(seen)

    def state(self) -> list[str]:
        """The names, as plain values."""
        return self.names

    def _noting(self, name: str, seen: dict[str, None]) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            assert self._ddp is not None
            if self._ddp.require_backward_grad_sync:  # in earlier passes DDP does not look
                seen[name] = None

        return note

    def load(self, names: Sequence[str]) -> None:
        """Let DDP fill its buckets in this order from the next step on; before the first one, on every rank alike.

        DDP takes the order from a backward pass: here from one of zeros, parameter by parameter, that nobody sends.

        Args:
            names: as the attribute of a former process. None of them, or another world without DDP: nothing is done.

        Raises:
            ValueError: if they are not those of the parameters that are trained.
        """
        if self._ddp is None or self._reduction is None or not names:
            return
        if sorted(names) != sorted(self._parameters):
            odd = ", ".join(sorted({*names} ^ self._parameters.keys())[:3])
            raise ValueError(f"{len(names)} gradients in an order, {len(self._parameters)} trained parameters: {odd}")
        self._ddp.reducer.prepare_for_backward([])
        with self._reduction.sending_nothing():
            for name in names:
                one = self._parameters[name]
                torch.autograd.backward(one, torch.zeros_like(one))
        for one in self._parameters.values():
            one.grad = None
        self.names = list(names)

"""The places of gradients in DDP's buckets: those of the run before, in the first step after a resume, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from largebatch.gradient.reduction_clock import ReductionClock

P = ParamSpec("P")
T = TypeVar("T")


class BucketOrder:
    """Notes the order in which gradients were first ready, by which DDP fills its buckets, and can have it filled so.

    A process reduces its first gradient in one bucket, in the order in which the model names its parameters. DDP sees
    which gradients are ready when, and from the second step on fills buckets in that order. An all-reduce of three or
    more ranks adds a number up in an order that depends on its place in its bucket: another place, other last digits.
    A process that goes on with a run therefore has DDP fill its buckets before its first step as they were filled.

    Args:
        model: as `Runtime.wrap` returned it; DDP reduces its gradients.
        clock: whose hook DDP calls.

    Attributes:
        names: of the parameters, in that order; empty before the first step, and where there is no DDP.
    """

    def __init__(self, model: nn.Module, clock: ReductionClock) -> None:
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self._clock = clock
        module = model if self._ddp is None else self._ddp.module
        self._parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
        self.names: list[str] = []

    def noted_in(self, accumulate: Callable[P, T]) -> Callable[P, T]:
        """A function that puts the gradient of a global batch into `.grad`, and notes the order, once."""

        def accumulate_and_note(*args: P.args, **kwargs: P.kwargs) -> T:
            if self._ddp is None or self.names:
                return accumulate(*args, **kwargs)
            seen: dict[str, None] = {}
            handles = [one.register_post_accumulate_grad_hook(self._noting(name, seen))
                       for name, one in self._parameters.items()]  # fmt: skip
            try:
                result = accumulate(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            self.names = list(seen)
            return result

        return accumulate_and_note

    def _noting(self, name: str, seen: dict[str, None]) -> Callable[[Tensor], None]:
        def note(_: Tensor) -> None:
            assert self._ddp is not None
            if self._ddp.require_backward_grad_sync:  # in earlier passes DDP does not look
                seen[name] = None

        return note

    def settle(self, names: Sequence[str]) -> None:
        """Let DDP fill its buckets in this order from the next step on; before the first one, on every rank alike.

        DDP takes the order from a backward pass: here from one of zeros, parameter by parameter, that nobody sends.

        Args:
            names: as the attribute of a former process. None of them, or another world without DDP: nothing is done.

        Raises:
            ValueError: if they are not those of the parameters that are trained.
        """
        if self._ddp is None or not names:
            return
        if sorted(names) != sorted(self._parameters):
            odd = ", ".join(sorted({*names} ^ self._parameters.keys())[:3])
            raise ValueError(f"{len(names)} gradients in an order, {len(self._parameters)} trained parameters: {odd}")
        self._ddp.reducer.prepare_for_backward([])
        with self._clock.sending_nothing():
            for name in names:
                one = self._parameters[name]
                torch.autograd.backward(one, torch.zeros_like(one))
        for one in self._parameters.values():
            one.grad = None
        self.names = list(names)

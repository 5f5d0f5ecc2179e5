"""Models that skip modules at random or by what they see: parameters without a gradient, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.step import Step, Weight


class SkippedParameters:
    """An instrument that makes what ranks do with parameters that some passes leave out what one process does.

    DDP reduces while the last backward pass computes, and waits for every parameter in that pass, whatever the passes
    before it had. Those that it leaves out get a gradient of 0 there, or keep the one that they have. A parameter that
    no micro-batch of the whole global batch used has no gradient (None) afterwards, as in plain torch on one process:
    optimizers leave it and its state alone, decay and momentum included. For that the ranks sum one number per
    parameter in every step, and the host waits for it.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it. Its parameters get hooks for good.
    """

    def __init__(self, runtime: Runtime, model: nn.Module) -> None:
        self._runtime = runtime
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self._parameters = [one for one in model.parameters() if one.requires_grad]
        self._in_step: set[int] = set()
        self._in_pass: set[int] = set()
        for one in self._parameters:
            one.register_post_accumulate_grad_hook(self._note)

    def is_due(self, step: Step) -> bool:
        """In every step."""
        return True

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`: what no rank has used has no gradient afterwards."""
        self._in_step = set()
        yield parts
        self._leave_out()

    def begin_pass(self) -> None:
        """Before a backward pass."""
        self._in_pass = set()

    def complete(self) -> None:
        """After it: if DDP reduces in it, hand it what it still waits for."""
        if self._ddp is None or not self._ddp.require_backward_grad_sync:
            return
        left = [one for one in self._parameters if id(one) not in self._in_pass]
        if left:
            seen = set(self._in_step)
            torch.autograd.backward(left, [torch.zeros_like(one) for one in left])
            self._in_step = seen

    def _leave_out(self) -> None:
        """No gradient for what no rank has used."""
        used = [float(id(one) in self._in_step) for one in self._parameters]
        counts = self._runtime.sum(used) if self._runtime.world_size > 1 else used
        for one, count in zip(self._parameters, counts, strict=True):
            if count == 0:
                one.grad = None

    def _note(self, parameter: Tensor) -> None:
        self._in_step.add(id(parameter))
        self._in_pass.add(id(parameter))

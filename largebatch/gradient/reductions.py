"""Two ways to reduce gradients over ranks: while the last backward pass computes, or once all passes are done.

See `ordered_reduction` for a third way, and README.md for how to add one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    fp16_compress_hook,
)

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.gradient_pieces import GradientPieces
from largebatch.gradient.power_sgd import PowerSGD
from largebatch.gradient.reduction_clock import ReductionClock
from largebatch.gradient.skipped_parameters import SkippedParameters

Compression = Literal["none", "fp16", "bf16", "powersgd"]
_ALL_REDUCES: dict[str, Any] = {"none": allreduce_hook, "fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
_COMPRESSED_BYTES = 2  # of a number on its way


class Reduction(Protocol):
    """Makes the gradients of ranks one, which every rank then has in `.grad`.

    Attributes:
        scale: what the weight of a loss is multiplied by: the ranks, where gradients are averaged; 1 where they are
            added. Nobody else knows whether ranks are averaged.
        model: that the passes run through: with the distributed wrapper, or without it.
    """

    @property
    def scale(self) -> int:
        """See above."""

    @property
    def model(self) -> nn.Module:
        """See above."""

    def begin(self, plan: BatchPlan) -> None:
        """Before the first micro-batch of a step."""

    def one_pass(self, index: int, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward pass of micro-batch `index`; `is_last`: of this rank in this step."""

    def finish(self) -> None:
        """After the last pass: leave the gradient of the global batch in `.grad`."""


class Overlapped:
    """DDP reduces each part of the gradient as soon as the last backward pass has completed it, and averages ranks.

    All passes but the last run under `no_sync`, so every gradient element is reduced exactly once.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it; without DDP, on a single rank, nothing is reduced.
        clock: stamps when parts are ready and reduced; None: DDP reduces by itself.
        compression: number format of gradients on their way between ranks; each step loses the rounded digits.
        power_sgd: reduces the buckets, for the compression of that name.
        skipped: for models whose passes may leave parameters out; None: every parameter is in the last pass.

    Attributes:
        on_departure: called with each of DDP's buckets when the rank's own part of the gradient is complete in it,
            before it is compressed or sent.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        clock: ReductionClock | None,
        *,
        compression: Compression = "none",
        power_sgd: PowerSGD | None = None,
        skipped: SkippedParameters | None = None,
    ) -> None:
        self.scale, self.model = runtime.world_size, model
        self.on_departure: list[Callable[[Any], None]] = []
        self._clock, self._skipped = clock, skipped
        self.compression, self.power_sgd = compression, power_sgd
        self._is_complete, self._sends = False, True
        self._ddp = None
        if isinstance(model, nn.parallel.DistributedDataParallel) and clock is not None:
            self._ddp = model
            # A lambda, because DDP rejects a hook whose annotations are strings.
            model.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))

    def begin(self, plan: BatchPlan) -> None:
        """See `Reduction`."""
        self._is_complete = False

    @contextlib.contextmanager
    def one_pass(self, index: int, *, is_last: bool) -> Iterator[None]:
        """See `Reduction`."""
        with contextlib.nullcontext() if is_last else no_sync(self.model):
            if self._skipped is not None:
                self._skipped.begin_pass()
            yield
            if self._skipped is not None:
                self._skipped.complete()

    def finish(self) -> None:
        """See `Reduction`.

        Raises:
            RuntimeError: if DDP still waits for a parameter: the other ranks would wait for this one.
        """
        if self._ddp is None or not self._ddp.require_backward_grad_sync or self._is_complete:
            return
        raise RuntimeError(
            "A parameter got no gradient in the last pass of this rank, so that the ranks cannot sum their gradients. "
            "The dry run saw nothing that a way through the model could depend on: no draw from torch, numpy "
            "or random and no value of a tensor. Choose modules by one of these, let every pass use every parameter, "
            "or say so in a loop of your own: make_run(skips_parameters=True)."
        )

    @contextlib.contextmanager
    def sending_nothing(self) -> Iterator[None]:
        """Around a backward pass that is no step's: DDP believes that its gradients were reduced."""
        self._sends = False
        yield
        self._sends = True

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        if not self._sends:
            return noop_hook(None, bucket)
        self._is_complete = bucket.is_last()  # they come in their order
        for called in self.on_departure:
            called(bucket)
        if self._clock is None or not self._clock.is_running:
            return self._start(bucket)
        buffer = bucket.buffer()
        done = self._clock.part_is_ready(
            buffer.numel() * (_COMPRESSED_BYTES if self.compression != "none" else buffer.element_size())
        )

        def stamp(future: torch.futures.Future[Tensor]) -> Tensor:
            done()
            return future.value()

        # On a GPU this is called at once, on a stream of its own that waits for the reduction.
        return self._start(bucket).then(stamp)

    def _start(self, bucket: Any) -> torch.futures.Future[Tensor]:
        if self.power_sgd is not None:
            return self.power_sgd(bucket)
        future: torch.futures.Future[Tensor] = _ALL_REDUCES[self.compression](None, bucket)
        return future


class Afterwards:
    """Sums over ranks once all passes are done: piece by piece, with nothing hidden behind computation.

    Args:
        runtime: the job.
        module: the unwrapped model.
        clock: learns that the rank waits; None: there is none.
        most_bytes: of a piece, which is copied to be sent; gradients stay where they are.
    """

    scale = 1

    def __init__(
        self, runtime: Runtime, module: nn.Module, clock: ReductionClock | None = None, *, most_bytes: int
    ) -> None:
        self.model = module
        self._runtime, self._clock = runtime, clock
        self._gradients = GradientPieces(module, most_bytes=most_bytes)

    def begin(self, plan: BatchPlan) -> None:
        """See `Reduction`."""

    def one_pass(self, index: int, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Reduction`."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """See `Reduction`."""
        if self._clock is not None:
            self._clock.start()
        if self._runtime.world_size == 1:
            return
        gradients = self._gradients.gradients()
        for piece in self._gradients.pieces:
            values = piece.read(gradients)
            self._runtime.sum_in_place(values)
            piece.write(gradients, values)


class Apart:
    """No reduction: each rank keeps its own part, times `scale`.

    Args:
        model: as `runtime.wrap` returned it.
        scale: of the reduction that this one is the rehearsal of.
    """

    def __init__(self, model: nn.Module, *, scale: int) -> None:
        self.model, self.scale = model, scale

    def begin(self, plan: BatchPlan) -> None:
        """See `Reduction`."""

    def one_pass(self, index: int, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Reduction`."""
        return no_sync(self.model)

    def finish(self) -> None:
        """See `Reduction`."""


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Backward passes inside leave the ranks' gradients apart."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()

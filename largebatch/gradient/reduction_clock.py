"""When the parts of a gradient were ready to be reduced over ranks, and when they were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    bf16_compress_hook,
    fp16_compress_hook,
)

from largebatch.distributed.runtime import Runtime

Compression = Literal["none", "fp16", "bf16"]
_REDUCTIONS: dict[str, Any] = {"none": allreduce_hook, "fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
_COMPRESSED_BYTES = 2  # of a number on its way


@dataclass(frozen=True)
class Timeline:
    """The reduction of one gradient as one rank saw it.

    Seconds count from the moment at which the last part was reduced, so none is above 0. Ranks leave a reduction
    together: this moment is one that their clocks share.

    Attributes:
        num_bytes: of every part as it is sent, in the order in which they were ready: DDP's buckets.
        ready_s: when the gradients of the part were computed, [parts].
        done_s: when the part was reduced, [parts].
        step_s: length of the whole step, data and update included.
    """

    num_bytes: tuple[int, ...]
    ready_s: tuple[float, ...]
    done_s: tuple[float, ...]
    step_s: float


@dataclass
class _Part:
    num_bytes: int
    ready: Any
    done: Any = None


class ReductionClock:
    """Times the reduction of gradients, and the part of it that no computation hides.

    DDP hands over its last bucket when the last gradient is ready. From then until the backward pass returns, the rank
    only waits.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        compression: what gradients are rounded to on their way between ranks; each step loses what that loses.

    Attributes:
        before_reduction: called with each of DDP's buckets when the rank's own part of the gradient is complete in it,
            before it is compressed or sent; None: nothing is.
    """

    def __init__(self, runtime: Runtime, model: nn.Module, compression: Compression = "none") -> None:
        self._all_reduce = _REDUCTIONS[compression]
        self._is_compressed = compression != "none"
        self._device = runtime.device
        self._on_gpu = runtime.device.type == "cuda"
        self._ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
        self._is_distributed = self._ddp is not None
        self._is_complete = False
        self.before_reduction: Callable[[Any], None] | None = None
        self._sends = True
        self._is_running = False
        self._parts: list[_Part] = []
        self._waits: list[tuple[Any, Any]] = []
        self._exposed_s = 0.0
        self._begun: Any = None
        if isinstance(model, nn.parallel.DistributedDataParallel):
            # A lambda, because DDP rejects a hook whose annotations are strings.
            model.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))

    def begin(self, *, measures: bool) -> None:
        """A step begins."""
        self._is_running, self._parts, self._waits, self._is_complete = measures, [], [], False
        self._begun = self._now() if measures else None

    def start(self) -> None:
        """From here on the rank only waits: for a reduction that DDP does not make."""
        if self._is_running:
            self._parts = [_Part(0, self._now())]

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective that the rank waits for before its backward passes: its time is exposed, too."""
        started = self._now() if self._is_running else None
        yield
        if started is not None:
            self._waits.append((started, self._now()))

    @contextlib.contextmanager
    def sending_nothing(self) -> Iterator[None]:
        """Around a backward pass between steps, whose gradients are nobody's: DDP believes that they were reduced."""
        self._sends = False
        yield
        self._sends = True

    def require_complete(self) -> None:
        """After the last backward pass of a step.

        Raises:
            RuntimeError: if DDP still waits for a parameter: the other ranks would wait for this one.
        """
        if self._ddp is None or not self._ddp.require_backward_grad_sync or self._is_complete:
            return
        raise RuntimeError(
            "A parameter got no gradient in the last pass of this rank, so that the ranks cannot sum their gradients. "
            "The trial of the run saw nothing that a way through the model could depend on: no draw from torch, numpy "
            "or random and no value of a tensor. Choose modules by one of these, let every pass use every parameter, "
            "or say so in a loop of your own: Run(skips_parameters=True)."
        )

    def exposed_s(self) -> float | None:
        """Seconds from the last bucket of the latest backward pass until now, and of `waiting`; None while not running.

        0 on a single rank.
        """
        if not self._is_running:
            return None
        if not self._is_distributed:
            return 0.0
        end = self._end()
        for part in self._parts:
            part.done = end if part.done is None else part.done
        waits = [*self._waits, (self._parts[-1].ready, end)]
        self._exposed_s = sum(self._seconds(started, ended) for started, ended in waits)
        return self._exposed_s

    def own_s(self) -> float | None:
        """Seconds of the step that ends here, after `exposed_s`, in which this rank did not wait for other ones.

        On a GPU it is the time of its stream. None while not running, and on a single rank.
        """
        if not self._is_running or not self._is_distributed:
            return None
        return self._seconds(self._begun, self._end()) - self._exposed_s

    def timeline(self) -> Timeline | None:
        """Of the step that ends here, after `exposed_s`; None while not running, and on a single rank."""
        if not self._is_running or not self._is_distributed:
            return None
        end = self._end()
        ready = [self._seconds(self._begun, part.ready) for part in self._parts]
        done = [self._seconds(self._begun, part.done) for part in self._parts]
        last = max(done)
        return Timeline(
            num_bytes=tuple(part.num_bytes for part in self._parts),
            ready_s=tuple(moment - last for moment in ready),
            done_s=tuple(moment - last for moment in done),
            step_s=self._seconds(self._begun, end),
        )

    def _reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        if not self._sends:
            return noop_hook(None, bucket)
        self._is_complete = bucket.is_last()  # they come in their order
        if self.before_reduction is not None:
            self.before_reduction(bucket)
        if not self._is_running:
            return self._start(bucket)
        buffer = bucket.buffer()
        part = _Part(
            buffer.numel() * (_COMPRESSED_BYTES if self._is_compressed else buffer.element_size()), self._now()
        )
        self._parts.append(part)

        def stamp(future: torch.futures.Future[Tensor]) -> Tensor:
            part.done = self._now()
            return future.value()

        # On a GPU this is called at once, on a stream of its own that waits for the reduction.
        return self._start(bucket).then(stamp)

    def _start(self, bucket: Any) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = self._all_reduce(None, bucket)
        return future

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _end(self) -> Any:
        """Now, when a GPU has done all that it was given."""
        end = self._now()
        if self._on_gpu:
            end.synchronize()
        return end

    def _seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000 if self._on_gpu else float(end - start)

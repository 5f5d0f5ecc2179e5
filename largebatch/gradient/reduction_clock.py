"""When the parts of a gradient were ready to be reduced over ranks, and when they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from largebatch.distributed.runtime import Runtime
from largebatch.distributed.stream_clock import StreamClock


@dataclass(frozen=True)
class Timeline:
    """The reduction of one gradient as one rank saw it.

    Seconds count from the moment at which the last part was reduced, so none is above 0. Ranks leave a reduction
    together: this moment is one that their clocks share.

    Attributes:
        num_bytes: of every part as it is sent, in the order in which they were ready: DDP's buckets.
        ready_s: when the gradients of the part were computed, [parts].
        done_s: when the part was reduced, [parts].
        step_s: length of the whole step, data and update included. On a GPU it is the time of its stream.
        own_s: of it, without waits for other ranks.
        exposed_s: from the last part until all are reduced, and in `waiting`: communication that no computation hides.
    """

    num_bytes: tuple[int, ...]
    ready_s: tuple[float, ...]
    done_s: tuple[float, ...]
    step_s: float
    own_s: float
    exposed_s: float


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
        is_distributed: whether gradients are reduced at all.

    Attributes:
        is_running: whether the present step is measured.
    """

    def __init__(self, runtime: Runtime, *, is_distributed: bool) -> None:
        self._clock = StreamClock(runtime.device)
        self._is_distributed = is_distributed
        self.is_running = False
        self._parts: list[_Part] = []
        self._waits: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def begin(self, *, measures: bool) -> None:
        """A step begins."""
        self.is_running, self._parts, self._waits = measures, [], []
        self._begun = self._clock.now() if measures else None

    def start(self) -> None:
        """From here on the rank only waits: for a reduction that DDP does not make."""
        if self.is_running:
            self._parts = [_Part(0, self._clock.now())]

    def part_is_ready(self, num_bytes: int) -> Callable[[], None]:
        """A part of the gradient is about to be sent; call what is returned when it was reduced."""
        part = _Part(num_bytes, self._clock.now())
        self._parts.append(part)

        def done() -> None:
            part.done = self._clock.now()

        return done

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a collective that the rank waits for before its backward passes: its time is exposed, too."""
        started = self._clock.now() if self.is_running else None
        yield
        if started is not None:
            self._waits.append((started, self._clock.now()))

    def is_reduced(self) -> None:
        """The gradient is reduced, or will be when a GPU comes to this place: nobody waits for it here."""
        if self.is_running and self._is_distributed:
            end = self._clock.now()
            for part in self._parts:
                part.done = end if part.done is None else part.done
            self._waits += ((part.ready, end) for part in self._parts[-1:])  # a reduction may have told nothing

    def timeline(self) -> Timeline | None:
        """Of the step that ends here; None while not running, and on a single rank.

        This is the one place of a measured step where the host waits for the GPU. Up to here all times are events on
        its stream; from here on the clock of the host is right as well, also on a single rank.
        """
        if not self.is_running:
            return None
        end = self._clock.now()
        if self._clock.on_gpu:
            end.synchronize()
        if not self._is_distributed:
            return None
        step_s = self._clock.seconds(self._begun, end)
        exposed_s = sum(self._clock.seconds(started, ended) for started, ended in self._waits)
        ready = [self._clock.seconds(self._begun, part.ready) for part in self._parts]
        done = [self._clock.seconds(self._begun, part.done) for part in self._parts]
        last = max(done, default=0.0)
        return Timeline(
            num_bytes=tuple(part.num_bytes for part in self._parts),
            ready_s=tuple(moment - last for moment in ready),
            done_s=tuple(moment - last for moment in done),
            step_s=step_s,
            own_s=step_s - exposed_s,
            exposed_s=exposed_s,
        )

"""Time that a test makes: what takes how long is known to the last digit, however busy the machine is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from largebatch.diagnostics.communication import steps
from largebatch.distributed import stream_clock
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import reductions

Delays = Callable[[int, Any], float]  # (number of the step from 0, one of DDP's buckets) -> seconds
_OWN_ZERO = 1000.0  # ranks' clocks do not agree on what time it is


class VirtualTime:
    """One rank's clock, in place of the module `time`: `sleep` moves it, and a collective, to the latest rank's."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now + (_OWN_ZERO * dist.get_rank() if dist.is_initialized() else 0.0)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def meet(self) -> None:
        """Wait for the last rank."""
        if dist.is_initialized():
            latest = torch.tensor([self.now], dtype=torch.float64)
            dist.all_reduce(latest, dist.ReduceOp.MAX)
            self.now = float(latest)

    @contextlib.contextmanager
    def at(self, moment: float) -> Iterator[None]:
        now, self.now = self.now, moment
        yield
        self.now = now


class _Done(torch.futures.Future):
    """A reduction that was done at `moment`: what is called then reads the clock then."""

    time: VirtualTime
    moment: float

    def then(self, callback: Any) -> Any:
        with self.time.at(self.moment):
            return super().then(callback)


@contextlib.contextmanager
def virtual_time(delays: Delays = lambda step, bucket: 0.0) -> Iterator[VirtualTime]:
    """Computing takes no time but what sleeps; ranks wait for each other in collectives.

    Args:
        delays: what DDP's reduction of a bucket takes once every rank has it ready, while the ranks go on computing.
    """
    time = VirtualTime()
    all_reduce, number, ends = reductions._ALL_REDUCES["none"], -1, [0.0]

    def hook(group: Any, bucket: Any) -> Any:
        nonlocal number
        number += bucket.index() == 0
        done = _Done()
        done.set_result(all_reduce(group, bucket).wait())
        departed = time.now
        time.meet()
        done.time, done.moment = time, max(time.now, ends[-1]) + delays(number, bucket)  # one after another
        ends.append(done.moment)
        time.now = max(ends) if bucket.is_last() else departed  # then nothing is left but to wait for all of them
        return done

    def meeting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def met(*arguments: Any) -> Any:
            result = collective(*arguments)
            time.meet()
            return result

        return met

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(reductions._ALL_REDUCES, "none", hook)
        for module in (stream_clock, steps):
            patched.setattr(module, "time", time)
        for name in ("sum", "sum_in_place", "broadcast_tensor"):
            patched.setattr(Runtime, name, meeting(getattr(Runtime, name)))
        yield time

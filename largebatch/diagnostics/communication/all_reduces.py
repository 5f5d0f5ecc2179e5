"""Time all-reduces of several sizes on the ranks of a job, in separate buffers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from largebatch.diagnostics.communication.costs import TransferFit, fit_transfer
from largebatch.diagnostics.communication.rank_clocks import meet, settle
from largebatch.distributed.gather import gather_floats
from largebatch.distributed.runtime import Runtime

_WARMUP = 1


@dataclass(frozen=True)
class ProbeTimes:
    """Times of all-reduces.

    Attributes:
        num_bytes: sizes of the tensors.
        median_s: median over repetitions, per size.
        low_s, high_s: quartiles over repetitions, per size.
    """

    num_bytes: tuple[int, ...]
    median_s: tuple[float, ...]
    low_s: tuple[float, ...]
    high_s: tuple[float, ...]

    @property
    def fit(self) -> TransferFit:
        """Latency and bandwidth of undisturbed all-reduces, from the lower quartiles.

        On a busy machine half of the times may be several times longer, because a rank lost its core for a while. The
        median would then be disturbed for some sizes and not for others.
        """
        return fit_transfer(self.num_bytes, self.low_s)


def time_all_reduces(runtime: Runtime, sizes: Sequence[int], *, repetitions: int) -> ProbeTimes:
    """Time all-reduces of float32 tensors of `sizes` bytes; every rank calls it and gets the same result.

    The ranks synchronise before each all-reduce. The last rank to enter does not wait for others, so the shortest of
    the ranks' times counts. Sizes alternate, so that a busy period of the network affects all of them.
    """
    buffer = torch.zeros(max(sizes) // 4, dtype=torch.float32, device=runtime.device)
    own = []
    for number in range(_WARMUP + repetitions):
        times = [_time_one(runtime, buffer[: size // 4]) for size in sizes]
        if number >= _WARMUP:
            own += times
    table = np.array(gather_floats(runtime, own)).reshape(runtime.world_size, repetitions, len(sizes))
    shortest = table.min(axis=0)
    low, high = np.quantile(shortest, (0.25, 0.75), axis=0)
    median = [statistics.median(column) for column in shortest.T.tolist()]
    return ProbeTimes(tuple(sizes), tuple(median), tuple(low.tolist()), tuple(high.tolist()))


def _time_one(runtime: Runtime, values: torch.Tensor) -> float:
    meet(runtime)
    started = time.perf_counter()
    runtime.sum_in_place(values)
    settle(runtime)
    return time.perf_counter() - started

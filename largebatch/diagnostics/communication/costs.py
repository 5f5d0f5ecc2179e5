"""Cost of reducing gradients over ranks, and the latency and bandwidth behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pair = tuple[float, float]

_SMALLEST_BYTES, _LARGE_BYTES = 2**10, 2**22


@dataclass(frozen=True)
class StepCommunication:
    """The reduction of one step's gradient over all ranks.

    Attributes:
        total_s: seconds in which some part of the gradient, ready on every rank, was being reduced.
        exposed_s: the part of `total_s` after the last gradient of the slowest rank, with no computation left.
        straggler_wait_s: seconds that the fastest rank waited for the slowest; not network time.
        slowest_rank: the rank that computed its last gradient last.
        step_s: duration of the whole step on the rank where it took longest.
    """

    total_s: float
    exposed_s: float
    straggler_wait_s: float
    slowest_rank: int
    step_s: float

    @property
    def hidden_share(self) -> float:
        """Share of the reduction that overlapped with computation; it may still have slowed it down."""
        return 1 - self.exposed_s / self.total_s if self.total_s > 0 else 0.0

    @property
    def share_of_step(self) -> float:
        """Exposed communication over the time of the step."""
        return self.exposed_s / self.step_s


def communication_of_step(
    ready_s: Sequence[Sequence[float]], done_s: Sequence[Sequence[float]], step_s: Sequence[float]
) -> StepCommunication:
    """Communication of one step, from the clocks of all ranks.

    The reduction of a part begins when the last rank has it ready. The wait of a rank before that is caused by a slower
    rank: it counts as straggler wait, not as communication.

    Args:
        ready_s: time at which each part of the gradient was ready on each rank, [ranks][parts], in order of readiness;
            0 is the end of the whole reduction, a moment common to all ranks.
        done_s: time at which each part was reduced on each rank, likewise.
        step_s: duration of the step on each rank, [ranks].

    >>> ready, done = [[-9.0, -2.0], [-7.0, -3.0]], [[-5.0, 0.0], [-5.0, 0.0]]  # rank 1, then rank 0 is the last
    >>> communication_of_step(ready, done, [20.0, 20.0])  # from -7 to -5 and from -2 to 0
    StepCommunication(total_s=4.0, exposed_s=2.0, straggler_wait_s=1.0, slowest_rank=0, step_s=20.0)
    """
    ready, done = np.asarray(ready_s, dtype=float), np.asarray(done_s, dtype=float)
    last = ready[:, -1]
    return StepCommunication(
        total_s=_union(ready.max(axis=0), done.max(axis=0)),
        exposed_s=-float(last.max()),
        straggler_wait_s=float(last.max() - last.min()),
        slowest_rank=int(last.argmax()),
        step_s=max(step_s),
    )


def _union(starts: np.ndarray, ends: np.ndarray) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, -np.inf
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered


@dataclass(frozen=True)
class TransferFit:
    """Linear model of the seconds of an all-reduce of n bytes on the measured ranks: latency_s + n * s_per_byte.

    For a ring of p ranks both grow with p: 2 (p - 1) messages of n / p bytes follow each other (Patarasuk and Yuan
    2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3). `ring` removes this
    factor.

    Attributes:
        latency_s, s_per_byte: intercept and slope of the line.
        latency_interval, s_per_byte_interval: their 95 % intervals, which include the lack of fit of the line.
    """

    latency_s: float
    s_per_byte: float
    latency_interval: Pair
    s_per_byte_interval: Pair

    @property
    def bandwidth(self) -> float | None:
        """Bytes of a gradient per second; None if the measured times do not grow with size."""
        return 1 / self.s_per_byte if self.s_per_byte_interval[0] > 0 else None

    @property
    def bandwidth_interval(self) -> Pair | None:
        """95 % interval of the bandwidth; None if there is no bandwidth."""
        low, high = self.s_per_byte_interval
        return (1 / high, 1 / low) if low > 0 else None

    def seconds(self, parts: Sequence[int]) -> float:
        """Predicted time of consecutive all-reduces of `parts` bytes."""
        return len(parts) * self.latency_s + sum(parts) * self.s_per_byte

    def ring(self, num_ranks: int) -> Pair:
        """Seconds per message and seconds per byte of one link, if the all-reduce is a ring of `num_ranks`.

        >>> TransferFit(6.0, 3.0, (6.0, 6.0), (3.0, 3.0)).ring(4)  # 6 messages, 6/4 of the bytes over every link
        (1.0, 2.0)
        """
        messages = 2 * (num_ranks - 1)
        return self.latency_s / messages, self.s_per_byte * num_ranks / messages


def fit_transfer(num_bytes: Sequence[float], seconds: Sequence[float]) -> TransferFit:
    """Latency and bandwidth of all-reduces from their times, by least squares of the relative errors.

    Times have a constant relative error, so weights are 1 / t^2. Here t is the fitted time, since weights from measured
    times would favour those that came out short. The intervals are Student's with n - 2 degrees of freedom.

    Args:
        num_bytes: size of each all-reduce, [n].
        seconds: time of each all-reduce, [n].

    Raises:
        ValueError: for fewer than 3 times, a single size, or a time that is not above 0.

    >>> fit = fit_transfer([1e3, 1e6, 2e6], [0.011, 1.01, 2.01])  # 10 ms, 1 MB/s
    >>> round(fit.latency_s, 9), round(1 / fit.s_per_byte, 3)
    (0.01, 1000000.0)
    """
    from scipy.special import stdtrit

    sizes, times = np.asarray(num_bytes, dtype=float), np.asarray(seconds, dtype=float)
    if len(times) < 3 or len(set(sizes.tolist())) < 2 or not (times > 0).all():
        raise ValueError(
            f"{len(times)} times of {len(set(sizes.tolist()))} sizes, the shortest {min(times, default=0.0)} s: a line "
            "with intervals needs 3 times above 0, of 2 sizes or more."
        )
    scale = sizes.max()  # else the normal equations mix 1 and 1e14
    terms = np.column_stack([np.ones_like(sizes), sizes / scale])
    fitted = times
    for _ in range(5):
        weighted, target = terms / fitted[:, None], times / fitted
        line = np.linalg.lstsq(weighted, target, rcond=None)[0]
        predicted = terms @ line
        fitted = np.where(predicted > 0, predicted, times)
    variance = float(((target - weighted @ line) ** 2).sum()) / (len(times) - 2)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(weighted.T @ weighted)))
    widths = float(stdtrit(len(times) - 2, 0.975)) * errors
    low, high = line - widths, line + widths
    return TransferFit(
        latency_s=float(line[0]),
        s_per_byte=float(line[1] / scale),
        latency_interval=(float(low[0]), float(high[0])),
        s_per_byte_interval=(float(low[1] / scale), float(high[1] / scale)),
    )


def probe_sizes(largest: int, count: int) -> list[int]:
    """`count` sizes in bytes from 1 KiB to `largest`, equal factors apart, of whole float32 numbers.

    The largest is at least 4 MiB: smaller ones measure only the latency.

    >>> probe_sizes(2**24, 8)[:3], probe_sizes(100, 4)
    ([1024, 4096, 16384], [1024, 16384, 262144, 4194304])
    """
    sizes = np.geomspace(_SMALLEST_BYTES, max(largest, _LARGE_BYTES), count)
    return [4 * round(float(size) / 4) for size in sizes]

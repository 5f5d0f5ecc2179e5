"""Gradient noise scale: the batch size at which noise and signal of a gradient are equal, with an interval."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

Pair = tuple[float, float]

# 97.5 % points of Student's t for the degrees of freedom that occur, batches of measurements less 1.
_T_QUANTILES = {5: 2.7764, 10: 2.2622}
_FEWEST = 10
_WIDEST = 10.0


@dataclass(frozen=True)
class NoiseScale:
    """tr(Sigma) / |G|^2 in samples: Sigma the covariance of the gradient of one sample, G the mean gradient.

    At a batch of B samples, a run needs 1 + B / noise_scale times the fewest samples and 1 + noise_scale / B times the
    fewest steps, as far as the model of McCandlish et al. 2018, "An empirical model of large-batch training" (arXiv
    1812.06162), section 2, holds: near its B_simple the batch is large enough, far above it samples are wasted. It is
    an order of magnitude (their table 1: critical batches are 1/4 to 5 times the noise scale), grows during training,
    and says little of a run whose learning rate is not tuned.

    Attributes:
        trace: tr(Sigma), mean of the measurements.
        grad_sq_norm: |G|^2, mean of the measurements; may be negative where noise dominates.
        num_measurements: how many.
        value: the ratio; None where there is not enough evidence.
        interval: 95 %; None likewise.
    """

    trace: float
    grad_sq_norm: float
    num_measurements: int
    value: float | None = None
    interval: Pair | None = None

    def sample_efficiency(self, global_batch_size: int) -> float | None:
        """Fewest samples over the samples that a run at this batch needs, 1 / (1 + B / noise_scale)."""
        return None if self.value is None else 1 / (1 + global_batch_size / self.value)

    def step_efficiency(self, global_batch_size: int) -> float | None:
        """Fewest steps over the steps that a run at this batch needs, 1 / (1 + noise_scale / B)."""
        return None if self.value is None else 1 / (1 + self.value / global_batch_size)


def moments_of_step(
    weighted_sq_norm: float,
    grad_sq_norm: float,
    *,
    num_micro_batches: int,
    global_batch_size: int,
    num_samples: int | None = None,
) -> Pair:
    """Unbiased tr(Sigma) and |G|^2 of one step.

        tr(Sigma) = (sum_i b_i |g_i|^2 - B |g|^2) / (n - 1)        |G|^2 = |g|^2 - tr(Sigma) / B

    with g_i the mean gradient of the b_i samples of micro-batch i of n, and g the mean gradient of all B. With equal b
    it is the estimator of McCandlish et al. 2018, appendix A.1, for samples that are drawn independently. |G|^2 can be
    negative: average before dividing.

    Samples that are drawn without replacement from D repel each other: the trace then comes out D / (D - 1) times too
    large and |G|^2 too small by tr(Sigma) / (D - 1), whatever the batch. With `num_samples` that is taken back.

    Args:
        weighted_sq_norm: sum_i b_i |g_i|^2.
        grad_sq_norm: |g|^2.
        num_micro_batches: n, at least 2.
        global_batch_size: B.
        num_samples: D, if batches are drawn without replacement; None: independent draws.

    Raises:
        ValueError: for fewer than 2 micro-batches.

    >>> moments_of_step(5.0 + 1.0, 1.0, num_micro_batches=2, global_batch_size=2)  # g_1^2 = 5, g_2^2 = 1, b = 1
    (4.0, -1.0)
    """
    if num_micro_batches < 2:
        raise ValueError(
            f"num_micro_batches={num_micro_batches}: the noise shows in the difference between micro-batches. Cut the "
            "batch into 2 or more."
        )
    trace = (weighted_sq_norm - global_batch_size * grad_sq_norm) / (num_micro_batches - 1)
    mean_sq_norm = grad_sq_norm - trace / global_batch_size
    if num_samples is None:
        return trace, mean_sq_norm
    return trace * (num_samples - 1) / num_samples, mean_sq_norm + trace / num_samples


@dataclass
class NoiseScaleEstimator:
    """Noise scale over the latest measurements of a run: both moments are averaged apart, the ratio is taken last.

    Neighbouring measurements of a run are alike, so the variance of a mean comes from the means of 10 consecutive
    batches of measurements (5 below 200), which are nearly independent. The interval is Fieller's for a ratio of means,
    which stays right where |G|^2 is hardly known; there it has no end, and there is no value.

    Attributes:
        window: measurements that count; older ones are forgotten.

    Source: Fieller 1954, "Some problems in interval estimation"; batch means: Law and Kelton, Simulation modeling and
    analysis, section 9.5.3.
    """

    window: int = 200
    _pairs: deque[Pair] = field(default_factory=deque)

    def add(self, trace: float, grad_sq_norm: float) -> None:
        """Take one measurement, as `moments_of_step` returns it; one that is not finite is left out."""
        if math.isfinite(trace) and math.isfinite(grad_sq_norm):
            self._pairs.append((trace, grad_sq_norm))
            while len(self._pairs) > self.window:
                self._pairs.popleft()

    def estimate(self) -> NoiseScale | None:
        """The noise scale now; None before the first measurement.

        Without a value if there are fewer than 10 measurements, the interval has no end, or its ends are more than a
        factor of 10 apart.
        """
        pairs = list(self._pairs)
        if not pairs:
            return None
        trace, grad_sq_norm = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
        unknown = NoiseScale(trace, grad_sq_norm, len(pairs))
        if len(pairs) < _FEWEST or trace <= 0 or grad_sq_norm <= 0:
            return unknown
        interval = _fieller(pairs)
        if interval is None or interval[0] <= 0 or interval[1] > _WIDEST * interval[0]:
            return unknown
        return NoiseScale(trace, grad_sq_norm, len(pairs), trace / grad_sq_norm, interval)


def _fieller(pairs: Sequence[Pair]) -> Pair | None:
    """95 % interval of the ratio of the means; None if it has no end."""
    num_batches = 10 if len(pairs) >= 200 else 5
    size = len(pairs) // num_batches
    used = pairs[len(pairs) - num_batches * size :]  # of a remainder the oldest are left out
    batches = [used[start : start + size] for start in range(0, len(used), size)]
    means = [[math.fsum(column) / size for column in zip(*batch, strict=True)] for batch in batches]
    top, bottom = (math.fsum(column) / num_batches for column in zip(*means, strict=True))

    def covariance(one: int, other: int) -> float:
        centre = (top, bottom)
        terms = [(mean[one] - centre[one]) * (mean[other] - centre[other]) for mean in means]
        return math.fsum(terms) / (num_batches - 1) / num_batches

    # (top - r bottom)^2 <= t^2 (v_top - 2 r c + r^2 v_bottom): between the roots of a r^2 - 2 b r + c.
    t_squared = _T_QUANTILES[num_batches] ** 2
    a = bottom**2 - t_squared * covariance(1, 1)
    b = top * bottom - t_squared * covariance(0, 1)
    c = top**2 - t_squared * covariance(0, 0)
    if a <= 0:
        return None
    # top / bottom always lies between the roots: below 0 it is rounding.
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return (b - root) / a, (b + root) / a

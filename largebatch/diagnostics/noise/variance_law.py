"""Variance of mini-batch gradients over the batch size, measured against the 1/B law, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.closed_forms import GradientNoise

Float64Array = npt.NDArray[np.float64]
Pair = tuple[float, float]


@dataclass(frozen=True)
class VariancePoint:
    """Gradient variance at one batch size.

    Attributes:
        batch_size: B.
        variance: measured E|g_B - G|^2, summed over all parameters.
        interval: 95 % interval; None for the batch of all samples drawn without replacement, which does not vary.
        theory: variance that the law predicts.
    """

    batch_size: int
    variance: float
    interval: Pair | None
    theory: float

    @property
    def standard_deviation(self) -> float:
        """Square root of the variance; it falls like 1/sqrt(B)."""
        return math.sqrt(self.variance)

    @property
    def ratio(self) -> float | None:
        """Measured over predicted variance; None if the prediction is 0."""
        return self.variance / self.theory if self.theory else None


@dataclass(frozen=True)
class Slope:
    """Exponent of the variance as a power of B.

    Attributes:
        value: slope of log variance over log B.
        interval: its 95 % interval.
    """

    value: float
    interval: Pair

    @property
    def of_standard_deviation(self) -> Slope:
        """Slope of the standard deviation: half of this one."""
        return Slope(self.value / 2, (self.interval[0] / 2, self.interval[1] / 2))

    @property
    def includes_law(self) -> bool:
        """Whether -1 lies in the interval."""
        return self.interval[0] <= -1 <= self.interval[1]


@dataclass(frozen=True)
class VarianceCurve:
    """Gradient variance over the batch size, for one way to draw batches.

    Attributes:
        replacement: whether batches are drawn with replacement.
        points: one per batch size, ascending.
        slope: slope of the measured variance; without replacement, after division by (D - B)/(D - 1). None if a
            variance below B = D is 0, because too few samples differ.
    """

    replacement: bool
    points: list[VariancePoint]
    slope: Slope | None


def variance_curve(
    measured: Float64Array, batch_sizes: Sequence[int], noise: GradientNoise, *, replacement: bool
) -> VarianceCurve:
    """Points and slope from replications of one experiment.

    A replication is one draw of the largest batch, cut into nested groups, so its variances at different sizes are
    dependent. Replications are independent. So every interval uses only the spread between replications, with Student's
    t for R - 1 degrees of freedom:

        point   V exp(+-t s/(sqrt(R) V)) with mean V and standard deviation s of R replications: in logarithms, in
                which the mean of few skewed values is closer to normal
        slope   least squares of log V over log B with equal weights, by the jackknife over replications (Efron and
                Tibshirani 1993, An introduction to the bootstrap, chapter 11), which also removes the bias of the
                logarithm

    Intervals are too narrow if a few samples carry nearly all of the variance, as after training to a loss of 0. With
    10 of 1437 samples carrying 73 % of it, coverage was 90 to 94 % for slopes and 86 to 94 % for points.

    Args:
        measured: mean |g_B - G|^2 of each replication and size, [R, sizes], R >= 2.
        batch_sizes: B, ascending.
        noise: gradient noise of the set, for the theory: tr(Sigma)/B, without replacement times (D - B)/(D - 1).
        replacement: whether batches were drawn with replacement.

    Raises:
        ValueError: for fewer than 2 replications, or shapes that do not fit.
    """
    if measured.ndim != 2 or len(measured) < 2 or measured.shape[1] != len(batch_sizes):
        raise ValueError(
            f"measured has the shape {list(measured.shape)}: it must be [replications, {len(batch_sizes)} sizes], and "
            "an interval needs 2 replications or more."
        )
    theory = [noise.mini_batch_variance(size, replacement=replacement) for size in batch_sizes]
    points = [
        VariancePoint(size, float(column.mean()), _interval(column) if expected else None, expected)
        for size, column, expected in zip(batch_sizes, measured.T, theory, strict=True)
    ]
    varying = [number for number, expected in enumerate(theory) if expected]
    sizes = np.array(batch_sizes, dtype=np.float64)[varying]
    left = np.ones_like(sizes) if replacement else (noise.num_samples - sizes) / (noise.num_samples - 1)
    return VarianceCurve(replacement, points, jackknifed_slope(measured[:, varying] / left, np.log(sizes)))


def jackknifed_slope(measured: Float64Array, log_sizes: Float64Array) -> Slope | None:
    """Jackknifed slope of the log mean over replications [R, sizes], see `variance_curve`.

    None if a mean, over all replications or with one left out, is not above 0.
    """
    count = len(measured)
    means = np.vstack([measured.mean(axis=0), (measured.sum(axis=0) - measured) / (count - 1)])
    if not (means > 0).all():
        return None
    centred = log_sizes - log_sizes.mean()
    whole, *without_one = np.log(means) @ centred / float(centred @ centred)
    pseudo_values = count * whole - (count - 1) * np.array(without_one)
    value = float(pseudo_values.mean())
    reach = t_quantile(count) * float(pseudo_values.std(ddof=1)) / math.sqrt(count)
    return Slope(value, (value - reach, value + reach))


def t_quantile(num_draws: int) -> float:
    """97.5 % point of Student's t for the mean of `num_draws` independent draws."""
    from scipy.special import stdtrit

    return float(stdtrit(num_draws - 1, 0.975))


def _interval(draws: Float64Array) -> Pair | None:
    mean, count = float(draws.mean()), len(draws)
    if mean <= 0:
        return None
    reach = t_quantile(count) * float(draws.std(ddof=1)) / math.sqrt(count) / mean
    return mean * math.exp(-reach), mean * math.exp(reach)

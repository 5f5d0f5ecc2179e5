"""How the variance of a mini-batch gradient falls with the batch size: measured against the 1/B law, with intervals."""

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
        interval: 95 %; None where nothing varies, at the batch of all samples drawn without replacement.
        theory: the variance that the law predicts.
    """

    batch_size: int
    variance: float
    interval: Pair | None
    theory: float

    @property
    def standard_deviation(self) -> float:
        """Root of the variance: it falls like 1/sqrt(B)."""
        return math.sqrt(self.variance)

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None if 0 is predicted."""
        return self.variance / self.theory if self.theory else None


@dataclass(frozen=True)
class Slope:
    """Power with which the variance falls.

    Attributes:
        value: of the line through log variance over log B.
        interval: 95 %.
    """

    value: float
    interval: Pair

    @property
    def of_standard_deviation(self) -> Slope:
        """The same for the standard deviation: half of it."""
        return Slope(self.value / 2, (self.interval[0] / 2, self.interval[1] / 2))

    @property
    def includes_law(self) -> bool:
        """Whether -1 lies in the interval."""
        return self.interval[0] <= -1 <= self.interval[1]


@dataclass(frozen=True)
class VarianceCurve:
    """Gradient variance over the batch size, for one way to draw batches.

    Attributes:
        replacement: whether a batch may hold a sample twice.
        points: one per batch size, ascending.
        slope: of the measured variance, without replacement after division by (D - B)/(D - 1); None if a variance of 0
            was measured below D: too few samples differ.
    """

    replacement: bool
    points: list[VariancePoint]
    slope: Slope | None


def variance_curve(
    measured: Float64Array, batch_sizes: Sequence[int], noise: GradientNoise, *, replacement: bool
) -> VarianceCurve:
    """Points and slope from replications of one experiment.

    A replication is one draw of the largest batch, cut into nested groups, so its variances at different sizes are not
    independent of each other. Replications are; hence every interval rests on their spread alone, with Student's t for
    their number less 1:

        point   V exp(+-t s/(sqrt(R) V)) with mean V and standard deviation s of R replications: on the scale of
                logarithms, where the mean of few skewed values is closer to a normal one
        slope   least squares through log V over log B, every size with the same weight, by the jackknife over
                replications (Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 11), which also
                takes back the bias of the logarithm

    Where a handful of samples has nearly all of the variance, as after training to a loss of 0, intervals are too
    narrow: with 10 of 1437 samples holding 73 % of it, 90 to 94 % of those of slopes covered, and 86 to 94 % of points.

    Args:
        measured: mean |g_B - G|^2 of each replication and size, [R, sizes], R >= 2.
        batch_sizes: ascending.
        noise: of the set, for the theory: tr(Sigma)/B, without replacement times (D - B)/(D - 1).
        replacement: how batches were drawn.

    Raises:
        ValueError: for fewer than 2 replications, or shapes that do not fit.
    """
    if measured.ndim != 2 or len(measured) < 2 or measured.shape[1] != len(batch_sizes):
        raise ValueError(
            f"measured has the shape {list(measured.shape)}: it is [replications, {len(batch_sizes)} sizes], and an "
            "interval needs 2 replications or more."
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
    """Slope of the log of the mean over replications [R, sizes]; None if that is not above 0, or is not with one less.

    See `variance_curve`.
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
    """97.5 % point of Student's t for the mean of so many independent draws."""
    from scipy.special import stdtrit

    return float(stdtrit(num_draws - 1, 0.975))


def _interval(draws: Float64Array) -> Pair | None:
    mean, count = float(draws.mean()), len(draws)
    if mean <= 0:
        return None
    reach = t_quantile(count) * float(draws.std(ddof=1)) / math.sqrt(count) / mean
    return mean * math.exp(-reach), mean * math.exp(reach)

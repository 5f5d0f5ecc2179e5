"""tr(Sigma), |G|^2 and the noise scale of a set from the gradient of every sample of a random subset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Pair = tuple[float, float]
_NORMAL = 1.959964  # 97.5 % point


@dataclass(frozen=True)
class SampledMoments:
    """Gradient noise of a set of N samples as n of them tell it.

    Attributes:
        num_samples: N.
        num_measured: n.
        trace: tr(Sigma), population of the set, as in `GradientNoise`.
        trace_interval: 95 %; None if every sample was measured: the value is then exact.
        grad_sq_norm: |G|^2 of the set; may be negative where it drowns in noise.
        grad_sq_norm_interval: as for the trace.
        noise_scale: tr(Sigma)/|G|^2 in samples; None where there is not enough evidence: its interval has no end.
        interval: 95 % of the noise scale; None if it is exact or unknown.
    """

    num_samples: int
    num_measured: int
    trace: float
    trace_interval: Pair | None
    grad_sq_norm: float
    grad_sq_norm_interval: Pair | None
    noise_scale: float | None
    interval: Pair | None

    @property
    def is_exact(self) -> bool:
        """Whether every sample of the set was measured."""
        return self.num_measured == self.num_samples


def moments_of_sample(
    sq_deviations: Float64Array, along_mean: Float64Array, grad_sq_norm: float, *, num_samples: int
) -> SampledMoments:
    """Estimate the moments of a set of N from n samples that were drawn without replacement.

    With S = sum |g_i - G_n|^2 / (n - 1) both of

        tr(Sigma) = S (N - 1)/N        |G|^2 = |G_n|^2 - S (1/n - 1/N)

    are unbiased, and exact for n = N. Their covariance is that of the jackknife over samples, times 1 - n/N (Cochran
    1977, Sampling Techniques, chapter 2); the interval of the ratio is Fieller's (1954).

    Args:
        sq_deviations: |g_i - G_n|^2 of every measured sample, [n], n >= 3.
        along_mean: (g_i - G_n)'G_n, [n].
        grad_sq_norm: |G_n|^2 of the mean gradient of the n samples.
        num_samples: N.

    Raises:
        ValueError: for fewer than 3 samples, or more than N.
    """
    count = len(sq_deviations)
    if not 3 <= count <= num_samples or along_mean.shape != sq_deviations.shape:
        raise ValueError(
            f"{count} samples of {num_samples}, {len(along_mean)} products: leaving one out takes 3 or more, and a "
            "sample has no more than the set."
        )
    whole = _moments(float(sq_deviations.sum()) / (count - 1), grad_sq_norm, count, num_samples)
    # Without sample i the sum of squares falls by |d_i|^2 n/(n - 1), and the mean moves by -d_i/(n - 1).
    spreads = (sq_deviations.sum() - sq_deviations * count / (count - 1)) / (count - 2)
    sq_norms = grad_sq_norm - 2 * along_mean / (count - 1) + sq_deviations / (count - 1) ** 2
    without_one = _moments(spreads, sq_norms, count - 1, num_samples)
    pseudo_values = count * whole[:, None] - (count - 1) * without_one
    covariance = np.cov(pseudo_values) / count * (1 - count / num_samples)
    trace, mean_sq_norm = (float(value) for value in whole)
    if count == num_samples:
        scale = trace / mean_sq_norm if mean_sq_norm > 0 else None
        return SampledMoments(num_samples, count, trace, None, mean_sq_norm, None, scale, None)
    interval = _fieller(trace, mean_sq_norm, covariance)
    # Squares are skewed: on the scale of logarithms their mean is closer to a normal one.
    factor = math.exp(_NORMAL * math.sqrt(covariance[0, 0]) / trace)
    reach = _NORMAL * math.sqrt(covariance[1, 1])
    return SampledMoments(
        num_samples=num_samples,
        num_measured=count,
        trace=trace,
        trace_interval=(trace / factor, trace * factor),
        grad_sq_norm=mean_sq_norm,
        grad_sq_norm_interval=(mean_sq_norm - reach, mean_sq_norm + reach),
        noise_scale=None if interval is None else trace / mean_sq_norm,
        interval=interval,
    )


def _moments(spread: float | Float64Array, sq_norm: float | Float64Array, count: int, num_samples: int) -> Float64Array:
    """(tr(Sigma), |G|^2) of the set, [2] or [2, n]."""
    return np.array([spread * (num_samples - 1) / num_samples, sq_norm - spread * (1 / count - 1 / num_samples)])


def _fieller(top: float, bottom: float, covariance: Float64Array) -> Pair | None:
    """95 % interval of top/bottom: the r with (top - r bottom)^2 <= z^2 Var(top - r bottom); None if it has no end."""
    a = bottom**2 - _NORMAL**2 * covariance[1, 1]
    b = top * bottom - _NORMAL**2 * covariance[0, 1]
    c = top**2 - _NORMAL**2 * covariance[0, 0]
    if a <= 0 or bottom <= 0:
        return None
    root = math.sqrt(max(b**2 - a * c, 0.0))  # top/bottom lies between the roots: below 0 it is rounding
    return float(b - root) / a, float(b + root) / a

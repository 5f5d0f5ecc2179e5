"""tr(Sigma), |G|^2 and the noise scale of a data set, from the sample gradients of a random subset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.intervals import fieller_interval

Float64Array = npt.NDArray[np.float64]
Pair = tuple[float, float]
_NORMAL = 1.959964  # 97.5 % point


@dataclass(frozen=True)
class SampledMoments:
    """Gradient noise of a set of N samples, estimated from n of them.

    Attributes:
        num_samples: N.
        num_measured: n.
        trace: tr(Sigma), population of the set, as in `GradientNoise`.
        trace_interval: its 95 % interval; None if every sample was measured, so that the value is exact.
        grad_sq_norm: |G|^2 of the set; may be negative if noise dominates.
        grad_sq_norm_interval: as for the trace.
        noise_scale: tr(Sigma)/|G|^2 in samples; None without enough evidence, if its interval is unbounded.
        interval: 95 % interval of the noise scale; None if it is exact or unknown.
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
    """Estimate the moments of a set of N from n samples drawn without replacement.

    With S = sum |g_i - G_n|^2 / (n - 1) the estimators

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
            f"{count} samples of {num_samples}, {len(along_mean)} products: the jackknife needs 3 samples or more, and "
            "no more than the data set has."
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
    interval = fieller_interval(trace, mean_sq_norm, covariance, quantile=_NORMAL)
    # Squares are skewed: the logarithm of their mean is closer to normal.
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

"""The exact noise of mini-batch gradients over a finite set, with and without replacement."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.diagnostics.closed_forms.arrays import Float64Array, require_batch


@dataclass(frozen=True)
class GradientNoise:
    """|G|^2 and tr(Sigma) of a set of D samples at one point; they determine all mini-batch noise.

    G is the mean of the sample gradients g_i. Sigma is their *population* covariance, `1/D sum (g_i - G)(g_i - G)'`:
    the noise of one draw from the set. The *sample* covariance has D - 1 in place of D; a batch drawn without
    replacement estimates it without bias.

    Attributes:
        num_samples: D.
        grad_sq_norm: |G|^2 of the full set.
        covariance_trace: tr(Sigma), population.

    Raises:
        ValueError: for fewer than 2 samples, which have no noise.

    >>> noise = GradientNoise(num_samples=5, grad_sq_norm=2.0, covariance_trace=8.0)
    >>> noise.simple_noise_scale, noise.sample_covariance_trace
    (4.0, 10.0)
    >>> noise.mini_batch_variance(2, replacement=True), noise.mini_batch_variance(2, replacement=False)
    (4.0, 3.0)
    """

    num_samples: int
    grad_sq_norm: float
    covariance_trace: float

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ValueError(f"num_samples={self.num_samples}: gradients differ only among 2 samples or more.")

    @classmethod
    def of_sample_gradients(cls, gradients: Float64Array) -> GradientNoise:
        """From the gradients of all samples, [D, p]."""
        mean = gradients.mean(axis=0)
        trace = float(((gradients - mean) ** 2).sum()) / len(gradients)
        return cls(len(gradients), float(mean @ mean), trace)

    @property
    def sample_covariance_trace(self) -> float:
        """D/(D - 1) tr(Sigma)."""
        return self.covariance_trace * self.num_samples / (self.num_samples - 1)

    @property
    def simple_noise_scale(self) -> float:
        """B_simple = tr(Sigma) / |G|^2, population. Source: McCandlish et al. 2018, equation 2.9."""
        return self.covariance_trace / self.grad_sq_norm

    def mini_batch_variance(self, global_batch_size: int, *, replacement: bool) -> float:
        """E|g_B - G|^2 of the mean gradient g_B of B samples.

        With replacement tr(Sigma)/B. Without, times the finite-population factor (D - B)/(D - 1), which is 1 for one
        sample and 0 for the whole set. Source: Cochran 1977, Sampling Techniques, theorem 2.2.

        Raises ValueError if B is below 1, or above D without replacement.
        """
        require_batch(global_batch_size, None if replacement else self.num_samples)
        variance = self.covariance_trace / global_batch_size
        if replacement:
            return variance
        return variance * (self.num_samples - global_batch_size) / (self.num_samples - 1)

    def mini_batch_sq_norm(self, global_batch_size: int, *, replacement: bool) -> float:
        """E|g_B|^2 = |G|^2 + E|g_B - G|^2."""
        return self.grad_sq_norm + self.mini_batch_variance(global_batch_size, replacement=replacement)

    def expected_estimates(self, *, replacement: bool) -> tuple[float, float]:
        """Expectation of the estimators of McCandlish et al. 2018, appendix A.1: (trace, |G|^2).

        They assume independent micro-batches. With replacement this holds: (tr(Sigma), |G|^2). Without, two samples of
        a batch have the covariance -Sigma/(D - 1), for any batch and micro-batch size, and the expectation is
        (D/(D - 1) tr(Sigma), |G|^2 - tr(Sigma)/(D - 1)).
        """
        if replacement:
            return self.covariance_trace, self.grad_sq_norm
        return self.sample_covariance_trace, self.grad_sq_norm - self.covariance_trace / (self.num_samples - 1)

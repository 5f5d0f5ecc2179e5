"""The noisy quadratic model: exact mean and variance of SGD as functions of batch size and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.closed_forms.arrays import Float64Array, Numbers, require_batch, require_rate, vector
from largebatch.diagnostics.closed_forms.gradient_noise import GradientNoise

_STEPS_AT_ONCE = 4096


@dataclass(frozen=True)
class NoisyQuadratic:
    """L(theta) = 1/2 sum h_i theta_i^2; the gradient of a sample is h_i theta_i + e_i, with Var e_i = c_i.

    Coordinates are independent. Only the mean and the variance of e enter, so first and second moments are exact for
    any distribution of e. Momentum is defined as in torch: v = m v + g, theta -= lr v.
    Source: Zhang et al. 2019 (arXiv 1907.04164), section 3, where c = h.

    Attributes:
        curvature: h, [d], all positive.
        noise_variance: c, [d], none negative; a single number applies to all d.

    Raises:
        ValueError: if a number lies outside its range or lengths differ.

    >>> task = NoisyQuadratic([1.0, 0.5], [1.0, 0.5])
    >>> task.stationary_variance(lr=0.5, global_batch_size=4).round(4).tolist()  # lr c / (B h (2 - lr h))
    [0.0833, 0.0714]
    """

    curvature: Float64Array
    noise_variance: Float64Array

    def __post_init__(self) -> None:
        curvature = vector("curvature", self.curvature)
        noise_variance = vector("noise_variance", self.noise_variance, length=len(curvature))
        if not (curvature > 0).all():
            raise ValueError(f"curvature={curvature.tolist()}: all must be positive, or the loss has no minimum at 0.")
        if not (noise_variance >= 0).all():
            raise ValueError(f"noise_variance={noise_variance.tolist()}: a variance must be 0 or more.")
        object.__setattr__(self, "curvature", curvature)
        object.__setattr__(self, "noise_variance", noise_variance)

    # --- at a point

    def loss(self, theta: Numbers) -> float:
        """1/2 sum h theta^2."""
        return 0.5 * float(self.curvature @ self._theta(theta) ** 2)

    def gradient(self, theta: Numbers) -> Float64Array:
        """G = h theta, [d]."""
        return self.curvature * self._theta(theta)

    def gradient_noise(self, theta: Numbers, *, num_samples: int) -> GradientNoise:
        """|G|^2 = sum h^2 theta^2 and tr(Sigma) = sum c of a set of `num_samples`; tr(Sigma) is constant."""
        gradient = self.gradient(theta)
        return GradientNoise(num_samples, float(gradient @ gradient), float(self.noise_variance.sum()))

    def critical_batch_size(self, theta: Numbers) -> float:
        """B_noise = tr(H Sigma) / (G'HG) = sum h c / sum h^3 theta^2: a step gains half of its maximum there.

        Source: McCandlish et al. 2018, equation 2.8.
        """
        gradient = self.gradient(theta)
        return float(self.curvature @ self.noise_variance / (self.curvature @ gradient**2))

    def optimal_lr(self, theta: Numbers, *, global_batch_size: int) -> float:
        """The rate with the largest expected decrease in one step: |G|^2/(G'HG) / (1 + B_noise/B), equation 2.6."""
        require_batch(global_batch_size)
        gradient = self.gradient(theta)
        largest = float(gradient @ gradient / (self.curvature @ gradient**2))
        return largest / (1 + self.critical_batch_size(theta) / global_batch_size)

    # --- over steps

    def max_stable_lr(self, *, momentum: float = 0.0) -> float:
        """2 (1 + m) / h_max: above it the variance grows without bound."""
        return 2 * (1 + _momentum(momentum)) / float(self.curvature.max())

    def mean_trajectory(self, theta: Numbers, *, lr: float, num_steps: int, momentum: float = 0.0) -> Float64Array:
        """E[theta] after 0, 1, ..., `num_steps` steps, [num_steps + 1, d]; independent of the batch size."""
        transition = self._transition(lr, momentum)
        state = np.stack([self._theta(theta), np.zeros_like(self.curvature)], axis=1)
        means = [state[:, 0]]
        for _ in range(num_steps):
            state = np.einsum("dij,dj->di", transition, state)
            means.append(state[:, 0])
        return np.stack(means)

    def second_moments(
        self,
        theta: Numbers,
        *,
        lr: float,
        num_steps: int,
        global_batch_size: float,
        momentum: float = 0.0,
        velocity: Numbers | float = 0.0,
    ) -> Float64Array:
        """E[theta^2] after 0, 1, ..., `num_steps` steps with fresh noise in every one, [num_steps + 1, d].

        `velocity` is torch's momentum buffer v at the start, [d].

        Without momentum E' = (1 - lr h)^2 E + lr^2 c/B. With it the same holds for the matrix of second moments of
        (theta, v): M' = A M A' + b b' c/B, where A = [[1 - lr h, -lr m], [h, m]] and b = (-lr, 1).
        """
        require_batch(global_batch_size)
        transition = self._transition(lr, momentum)
        enters = np.array([-lr, 1.0])
        noise = np.multiply.outer(self.noise_variance / global_batch_size, np.outer(enters, enters))
        state = np.stack([self._theta(theta), vector("velocity", velocity, length=len(self.curvature))], axis=1)
        moments = state[:, :, None] * state[:, None, :]
        history = [moments[:, 0, 0]]
        for _ in range(num_steps):
            moments = transition @ moments @ transition.transpose(0, 2, 1) + noise
            history.append(moments[:, 0, 0])
        return np.stack(history)

    def scheduled_moments(
        self, theta: Numbers, *, lrs: Sequence[float], batch_sizes: Sequence[int], normalised: bool = False
    ) -> Float64Array:
        """E[theta^2] after 0, 1, ... steps with fresh noise, each with a rate and a batch of its own, [steps + 1, d].

        Without momentum: E' = (1 - e h)^2 E + e^2 c/B, with e the rate. `normalised`: the step is by g / sqrt(E|g|^2),
        so e = lr / sqrt(sum h^2 E + sum c/B), and lr sqrt(B / sum c) where noise dominates: a proxy of adaptive methods
        (Meterez et al. 2025).

        >>> task = NoisyQuadratic([1.0], [1.0])
        >>> task.scheduled_moments([0.0], lrs=[0.5, 0.5], batch_sizes=[1, 4])[:, 0].tolist()  # 1/4 * 1/4 + 1/4 * 1/4
        [0.0, 0.25, 0.125]
        """
        moments = [self._theta(theta) ** 2]
        for lr, size in zip(lrs, batch_sizes, strict=True):
            require_rate(lr)
            require_batch(size)
            noise, now = self.noise_variance / size, moments[-1]
            rate = lr / math.sqrt(float((self.curvature**2 * now + noise).sum())) if normalised else lr
            moments.append((1 - rate * self.curvature) ** 2 * now + rate**2 * noise)
        return np.stack(moments)

    def stationary_variance(self, *, lr: float, global_batch_size: int, momentum: float = 0.0) -> Float64Array:
        """E[theta^2] after very many steps with fresh noise, [d]: lr c / (B h (2 - lr h)) without momentum.

        With momentum (1 + m)/(1 - m) lr c / (B h (2 (1 + m) - lr h)).

        Raises ValueError if the rate is not below `max_stable_lr`.
        """
        require_rate(lr)
        require_batch(global_batch_size)
        if lr >= self.max_stable_lr(momentum=momentum):
            raise ValueError(
                f"lr={lr}: there is no stationary variance from 2 (1 + momentum) / h_max = "
                f"{self.max_stable_lr(momentum=momentum):g} on. Use a smaller rate."
            )
        room = 2 * (1 + momentum) - lr * self.curvature
        gain = (1 + momentum) / (1 - momentum)
        return gain * lr * self.noise_variance / (global_batch_size * self.curvature * room)

    def epoch_second_moments(
        self, theta: Numbers, *, lr: float, num_epochs: int, global_batch_size: int, num_samples: int
    ) -> Float64Array:
        """E[theta^2] after 0, 1, ..., `num_epochs` epochs over a set whose noise has mean 0 and variance c, [.., d].

        Without momentum. The K = D/B batches of an epoch are drawn without replacement: each has the variance
        c/B (D - B)/(D - 1), and two of them the covariance -c/(D - 1). With a_k = (1 - lr h)^k for k < K an epoch adds
        `lr^2 c/(D - 1) (D/B sum a_k^2 - (sum a_k)^2)`: 0 for equal a_k, since the noise of a whole epoch sums to 0.

        Raises ValueError if D is no multiple of B: a batch would then span two epochs.
        """
        moments = [self._theta(theta) ** 2]
        powers = self._powers_of_an_epoch(lr, global_batch_size, num_samples)
        added = lr**2 * self.noise_variance * self._epoch_noise(powers, global_batch_size, num_samples)
        kept = (1 - lr * self.curvature) ** (2 * len(powers))
        for _ in range(num_epochs):
            moments.append(kept * moments[-1] + added)
        return np.stack(moments)

    def without_replacement_factor(self, *, lr: float, global_batch_size: int, num_samples: int) -> Float64Array:
        """Variance added by one shuffled epoch over the variance added by equally many steps with fresh noise, [d].

        D/(D - 1) (1 - B/D (sum a_k)^2 / sum a_k^2), with a_k as in `epoch_second_moments`.
        """
        powers = self._powers_of_an_epoch(lr, global_batch_size, num_samples)
        fresh = (powers**2).sum(axis=0) / global_batch_size
        return self._epoch_noise(powers, global_batch_size, num_samples) / fresh

    def steps_to_target(
        self, target_loss: float, theta: Numbers, *, lr: float, global_batch_size: int, max_steps: int = 1_000_000
    ) -> int | None:
        """Fewest steps to an expected loss of at most `target_loss`; None if `max_steps` are not enough.

        Without momentum, from E_t = V + (1 - lr h)^(2 t) (E_0 - V), where V is the stationary variance.
        """
        stationary = self.stationary_variance(lr=lr, global_batch_size=global_batch_size)
        excess = self._theta(theta) ** 2 - stationary
        for first in range(0, max_steps + 1, _STEPS_AT_ONCE):
            steps = np.arange(first, min(first + _STEPS_AT_ONCE, max_steps + 1))
            moments = stationary + (1 - lr * self.curvature) ** (2 * steps[:, None]) * excess
            reached = np.flatnonzero(0.5 * moments @ self.curvature <= target_loss)
            if reached.size:
                return int(steps[reached[0]])
        return None

    def _theta(self, theta: Numbers) -> Float64Array:
        return vector("theta", theta, length=len(self.curvature))

    def _transition(self, lr: float, momentum: float) -> Float64Array:
        """A of every coordinate, [d, 2, 2]: (theta, v) -> A (theta, v)."""
        require_rate(lr)
        h, ones = self.curvature, np.ones_like(self.curvature)
        m = _momentum(momentum) * ones
        return np.stack([np.stack([1 - lr * h, -lr * m], axis=-1), np.stack([h, m], axis=-1)], axis=1)

    def _powers_of_an_epoch(self, lr: float, global_batch_size: int, num_samples: int) -> Float64Array:
        """(1 - lr h)^k for every step of an epoch, [K, d]."""
        require_rate(lr)
        require_batch(global_batch_size, num_samples)
        num_steps, rest = divmod(num_samples, global_batch_size)
        if rest:
            raise ValueError(
                f"num_samples={num_samples} is not a multiple of global_batch_size={global_batch_size}: a batch would "
                f"span two epochs, which this formula excludes. Use a divisor of {num_samples}."
            )
        return (1 - lr * self.curvature) ** np.arange(num_steps)[:, None]

    @staticmethod
    def _epoch_noise(powers: Float64Array, global_batch_size: int, num_samples: int) -> Float64Array:
        """Var(sum a_k e_k) / c over the batches of one epoch, [d]."""
        squares, square = (powers**2).sum(axis=0), powers.sum(axis=0) ** 2
        return (num_samples / global_batch_size * squares - square) / (num_samples - 1)


def _momentum(momentum: float) -> float:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: must be in [0, 1).")
    return momentum

"""Linear regression by half the squared error: Hessian, minimiser, gradient noise and trajectory of the full set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from largebatch.diagnostics.closed_forms.arrays import Float64Array, Numbers, require_batch, require_rate, vector
from largebatch.diagnostics.closed_forms.gradient_noise import GradientNoise
from largebatch.diagnostics.closed_forms.quadratic import NoisyQuadratic


@dataclass(frozen=True)
class LeastSquares:
    """L(w) = 1/N sum 1/2 (z_i'w - y_i)^2, with rows z_i = (x_i, 1), or x_i without a bias.

    w holds the weights and then the bias, in the order of `largebatch.models.Linear`. Because of the factor 1/2, the
    gradient of a sample is its residual times z_i, and the Hessian is Z'Z/N. All results refer to this finite set, not
    to the distribution that it was drawn from.

    Attributes:
        inputs: x, [N, d].
        targets: y, [N].
        bias: whether the model has an offset.
        design: Z, [N, p], with p = d + 1, or d without a bias.
        hessian: H = Z'Z/N, [p, p].
        eigenvalues: of H, ascending, [p].
        eigenvectors: of H, its columns in that order, [p, p].
        minimiser: w with gradient 0, [p].

    Raises:
        ValueError: if shapes do not fit, or H is singular, so that the minimiser is not unique.

    >>> task = LeastSquares(np.array([[1.0], [-1.0]]), np.array([3.0, -1.0]))
    >>> task.minimiser.round(12).tolist(), task.max_stable_lr  # y = 2 x + 1, H = 1
    ([2.0, 1.0], 2.0)
    >>> task.loss([0.0, 0.0])
    2.5
    """

    inputs: Float64Array
    targets: Float64Array
    bias: bool = True
    design: Float64Array = field(init=False, repr=False)
    hessian: Float64Array = field(init=False, repr=False)
    eigenvalues: Float64Array = field(init=False, repr=False)
    minimiser: Float64Array = field(init=False, repr=False)
    eigenvectors: Float64Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inputs, targets = np.asarray(self.inputs, np.float64), np.asarray(self.targets, np.float64)
        if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or len(inputs) == 0:
            raise ValueError(
                f"inputs {list(inputs.shape)} and targets {list(targets.shape)}: must be [N, d] and [N], N >= 1."
            )
        design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1) if self.bias else inputs
        rank = int(np.linalg.matrix_rank(design))
        if rank < design.shape[1]:
            raise ValueError(
                f"{len(inputs)} samples of rank {rank} for {design.shape[1]} parameters: the minimiser is not unique. "
                f"Use more samples, or fewer features."
            )
        hessian = design.T @ design / len(design)
        eigenvalues, eigenvectors = np.linalg.eigh(hessian)
        values = {
            "inputs": inputs,
            "targets": targets,
            "design": design,
            "hessian": hessian,
            "eigenvalues": eigenvalues,
            "minimiser": np.linalg.lstsq(design, targets, rcond=None)[0],
            "eigenvectors": eigenvectors,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def max_stable_lr(self) -> float:
        """2 / h_max: gradient descent on the full set converges below it and diverges above."""
        return 2 / float(self.eigenvalues[-1])

    def loss(self, weights: Numbers) -> float:
        """L(w), the mean over the set."""
        return 0.5 * float(np.mean(self._residuals(weights) ** 2))

    def excess(self, path: npt.ArrayLike) -> Float64Array:
        """L(w) - L(w*) = 1/2 (w - w*)'H(w - w*) of every point w of `path` [..., p], without cancellation.

        >>> LeastSquares(np.array([[1.0], [-1.0]]), np.array([3.0, -1.0])).excess([[0.0, 0.0], [2.0, 1.0]]).round(12)
        array([2.5, 0. ])
        """
        along = self.along_eigenvectors(path)
        return 0.5 * along**2 @ self.eigenvalues

    def along_eigenvectors(self, path: npt.ArrayLike) -> Float64Array:
        """W - w* of every point w of `path` [..., p], in coordinates along the eigenvectors, [..., p]."""
        return (np.asarray(path, np.float64) - self.minimiser) @ self.eigenvectors

    def near_minimiser(self) -> NoisyQuadratic:
        """The noisy quadratic model at w*, along the eigenvectors: curvature h, and gradient noise c at w*.

        An approximation: the noise grows with the distance from w*, and may be correlated between coordinates.
        """
        noise = self.sample_gradients(self.minimiser) @ self.eigenvectors
        return NoisyQuadratic(self.eigenvalues, (noise**2).mean(axis=0))

    def gradient(self, weights: Numbers) -> Float64Array:
        """G = Z'(Z w - y)/N, [p]."""
        return self.design.T @ self._residuals(weights) / len(self.design)

    def sample_gradients(self, weights: Numbers) -> Float64Array:
        """Gradient of every sample, (z_i'w - y_i) z_i, [N, p]."""
        return self._residuals(weights)[:, None] * self.design

    def gradient_noise(self, weights: Numbers) -> GradientNoise:
        """|G|^2 and tr(Sigma) = mean(r_i^2 |z_i|^2) - |G|^2 at w."""
        gradient = self.gradient(weights)
        sq_norm = float(gradient @ gradient)
        mean_sq_norm = float(np.mean(self._residuals(weights) ** 2 * (self.design**2).sum(axis=1)))
        return GradientNoise(len(self.design), sq_norm, mean_sq_norm - sq_norm)

    def trajectory(self, weights: Numbers, *, lr: float, num_steps: int) -> Float64Array:
        """Weights after 0, 1, ..., `num_steps` steps of gradient descent on the full set, [num_steps + 1, p].

        w_t = w* + (I - lr H)^t (w_0 - w*), by the eigenvectors of H, without simulation.
        """
        require_rate(lr)
        start = self.eigenvectors.T @ (self._weights(weights) - self.minimiser)
        powers = (1 - lr * self.eigenvalues) ** np.arange(num_steps + 1)[:, None]
        return self.minimiser + (powers * start) @ self.eigenvectors.T

    def scheduled_excess(self, weights: Numbers, *, lrs: Sequence[float], batch_sizes: Sequence[int]) -> Float64Array:
        """E[L(w) - L(w*)] after 0, 1, ... steps of SGD, each with a rate and a batch of its own, [steps + 1].

        Exact, for samples drawn with replacement. With d = w - w*, m = E[d], M = E[dd'] and e the residuals y - Zw*:
        M' = M - lr (HM + MH) + lr^2 ((1 - 1/B) HMH + 1/B mean_i z_i z_i' (z_i'M z_i - 2 e_i z_i'm + e_i^2)), since
        two draws of a batch are independent, and mean_i z_i e_i = 0.
        """
        design, hessian, errors = self.design, self.hessian, -self._residuals(self.minimiser)
        mean = self._weights(weights) - self.minimiser
        moments, found = np.outer(mean, mean), [self.excess(weights)]
        for lr, size in zip(lrs, batch_sizes, strict=True):
            require_rate(lr)
            require_batch(size)
            squares = np.einsum("ip,pq,iq->i", design, moments, design) - 2 * errors * (design @ mean) + errors**2
            of_samples = (design * squares[:, None]).T @ design / len(design)
            noise = (1 - 1 / size) * hessian @ moments @ hessian + of_samples / size
            moments = moments - lr * (hessian @ moments + moments @ hessian) + lr**2 * noise
            mean = mean - lr * hessian @ mean
            found.append(0.5 * np.sum(hessian * moments))
        return np.array(found)

    def _weights(self, weights: Numbers) -> Float64Array:
        return vector("weights", weights, length=self.design.shape[1])

    def _residuals(self, weights: Numbers) -> Float64Array:
        return self.design @ self._weights(weights) - self.targets

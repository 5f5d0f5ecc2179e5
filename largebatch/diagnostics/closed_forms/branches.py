"""Exact critical batch sizes of branches from a point of the noisy quadratic, and simulated branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.batch.scaling import RATE_EXPONENTS
from largebatch.diagnostics.closed_forms.arrays import Float64Array
from largebatch.diagnostics.closed_forms.quadratic import NoisyQuadratic
from largebatch.diagnostics.critical_batch.branches import Branches


@dataclass(frozen=True)
class QuadraticBranches:
    """Branches of SGD from one point of a noisy quadratic, each over the same fresh samples.

    Attributes:
        task: the quadratic.
        theta, velocity: weights and torch's momentum buffer of the point, [d].
        momentum: of SGD.
        base_lr: rate of the smallest batch.
        rule: of the rate over the batch, see `batch.scaling`.
        batch_sizes: ascending.
        num_samples: N of a branch; a multiple of each batch size.
    """

    task: NoisyQuadratic
    theta: Float64Array
    velocity: Float64Array
    momentum: float
    base_lr: float
    rule: str
    batch_sizes: tuple[int, ...]
    num_samples: int

    def rate(self, batch_size: float) -> float:
        """The rule's rate."""
        return self.base_lr * (batch_size / self.batch_sizes[0]) ** RATE_EXPONENTS[self.rule]

    def expected_loss(self, num_steps: int, num_samples: int | None = None) -> float:
        """Expected loss after `num_samples` samples (None: N) in equal batches."""
        batch_size = (num_samples or self.num_samples) / num_steps
        moments = self.task.second_moments(
            self.theta,
            velocity=self.velocity,
            momentum=self.momentum,
            lr=self.rate(batch_size),
            num_steps=num_steps,
            global_batch_size=batch_size,
        )
        return float(0.5 * moments[-1] @ self.task.curvature)

    @property
    def smallest(self) -> float:
        """Expected loss of the smallest batch after all samples."""
        return self.expected_loss(self.num_samples // self.batch_sizes[0])

    @property
    def halfway(self) -> float:
        """Expected loss of the smallest batch after half of them."""
        return self.expected_loss(self.num_samples // self.batch_sizes[0] // 2, self.num_samples // 2)

    def crossing(self, loss: float) -> float:
        """The batch size at which the expected loss first reaches `loss`; infinity: at none up to the largest.

        Every number of steps s gives an exact batch size N / s; between two of them the loss is interpolated.
        """
        ends = (self.num_samples // size for size in (self.batch_sizes[0], self.batch_sizes[-1]))
        before = (math.nan, math.nan)
        for num_steps in range(next(ends), next(ends) - 1, -1):
            size, above = self.num_samples / num_steps, self.expected_loss(num_steps) - loss
            if above >= 0:
                return (
                    size if math.isnan(before[0]) else before[0] + (size - before[0]) * -before[1] / (above - before[1])
                )
            before = size, above
        return math.inf

    def draw(self, generator: np.random.Generator, *, num_windows: int, num_evaluated: int) -> Branches:
        """Simulated branches, with normal noise; each window is evaluated on `num_evaluated` samples of its own."""
        task, unit = self.task, math.gcd(*self.batch_sizes)
        shape = (num_windows, self.num_samples // unit, len(task.curvature))
        noise = generator.standard_normal(shape) * np.sqrt(task.noise_variance / unit)
        evaluated = generator.standard_normal((num_windows, shape[2])) * np.sqrt(task.noise_variance / num_evaluated)
        losses, halves = [], []
        for size in self.batch_sizes:
            mean = noise.reshape(num_windows, -1, size // unit, shape[2]).mean(axis=2)
            half, end = self._descend(mean, self.rate(size), evaluated)
            losses.append(end)
            halves.append(half)
        return Branches(self.batch_sizes, np.stack(losses, axis=1), halves[0], self.num_samples)

    def _descend(self, noise: Float64Array, lr: float, evaluated: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Losses after half and after all of the steps, both [W], for noise [W, steps, d]."""
        num_windows, num_steps, width = noise.shape
        theta, velocity = (np.broadcast_to(one, (num_windows, width)) for one in (self.theta, self.velocity))
        half = np.empty(num_windows)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(num_steps):
                velocity = self.momentum * velocity + self.task.curvature * theta + noise[:, step]
                theta = theta - lr * velocity
                if step + 1 == num_steps // 2:
                    half = self._losses(theta, evaluated)
            return half, self._losses(theta, evaluated)

    def _losses(self, theta: Float64Array, evaluated: Float64Array) -> Float64Array:
        losses: Float64Array = 0.5 * theta**2 @ self.task.curvature + (theta * evaluated).sum(axis=1)
        return losses


def point_of_run(
    task: NoisyQuadratic, start: Sequence[float] | Float64Array, *, lr: float, batch_size: int, num_steps: int,
    momentum: float, seed: int,
) -> tuple[Float64Array, Float64Array]:  # fmt: skip
    """Weights and momentum buffer after some steps of a simulated run."""
    generator = np.random.default_rng(seed)
    theta = np.array(start, dtype=np.float64)
    velocity = np.zeros_like(theta)
    for _ in range(num_steps):
        noise = generator.standard_normal(len(theta)) * np.sqrt(task.noise_variance / batch_size)
        velocity = momentum * velocity + task.gradient(theta) + noise
        theta = theta - lr * velocity
    return theta, velocity

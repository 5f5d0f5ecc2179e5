"""LARS and LAMB in numpy and float64, one tensor at a time, written from the papers and from nothing of this package.

The only liberty: the ratio is 1 where a norm is 0, which the papers leave open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


class ReferenceLARS:
    """You, Gitman, Ginsburg 2017, Algorithm 1; `lr_inside=False` moves the rate behind the velocity, as SGD has it."""

    def __init__(
        self,
        weight: Float64Array,
        *,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        adapts: bool,
        lr_inside: bool = True,
    ) -> None:
        self.weight = weight.astype(np.float64)
        self.velocity = np.zeros_like(self.weight)
        self.momentum, self.decay, self.trust = momentum, weight_decay, trust_coefficient
        self.adapts, self.lr_inside = adapts, lr_inside

    def step(self, grad: Float64Array, lr: float) -> None:
        weight_norm, grad_norm = math.sqrt(np.sum(self.weight**2)), math.sqrt(np.sum(grad**2))
        local_lr = 1.0
        if self.adapts and weight_norm > 0 and grad_norm > 0:
            local_lr = self.trust * weight_norm / (grad_norm + self.decay * weight_norm)
        step = local_lr * (grad + self.decay * self.weight)
        if self.lr_inside:
            self.velocity = self.momentum * self.velocity + lr * step
            self.weight = self.weight - self.velocity
        else:
            self.velocity = self.momentum * self.velocity + step
            self.weight = self.weight - lr * self.velocity


class ReferenceLAMB:
    """You et al. 2019 v5, Algorithm 2, with phi the identity."""

    def __init__(
        self, weight: Float64Array, *, betas: tuple[float, float], eps: float, weight_decay: float, adapts: bool
    ) -> None:
        self.weight = weight.astype(np.float64)
        self.m, self.v, self.t = np.zeros_like(self.weight), np.zeros_like(self.weight), 0
        self.betas, self.eps, self.decay, self.adapts = betas, eps, weight_decay, adapts

    def step(self, grad: Float64Array, lr: float) -> None:
        beta1, beta2 = self.betas
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * grad
        self.v = beta2 * self.v + (1 - beta2) * grad**2
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        update = m_hat / (np.sqrt(v_hat) + self.eps) + self.decay * self.weight
        weight_norm, update_norm = math.sqrt(np.sum(self.weight**2)), math.sqrt(np.sum(update**2))
        ratio = weight_norm / update_norm if self.adapts and weight_norm > 0 and update_norm > 0 else 1.0
        self.weight = self.weight - lr * ratio * update


NUM_STEPS = 60
FLAGS = ((0.05, True), (0.05, False), (0.0, True), (0.0, False))
"""(weight_decay, adapts) of the four groups of every trajectory."""


@dataclass(frozen=True)
class Course:
    """What one tensor goes through: its first value and a gradient for every step, all exact in float32."""

    weight: Float64Array
    grads: list[Float64Array]


def courses(seed: int) -> list[Course]:
    """A matrix, a kernel, a vector, a scalar, and a matrix that starts at zero; gradients of very different sizes.

    The matrix has a zero gradient at step 10. The zero matrix has zero gradients at first, so both of its norms are 0.
    """
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], scale: float) -> Float64Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    made = []
    for shape, weight_scale, grad_scale in (
        ((7, 5), 0.3, 2.0),
        ((4, 3, 2, 2), 0.1, 1e-3),
        ((6,), 1.0, 0.1),
        ((), 1.0, 30.0),
        ((3, 4), 0.0, 0.5),
    ):
        grads = [normal(shape, grad_scale) for _ in range(NUM_STEPS)]
        for step in {(7, 5): (10,), (3, 4): (0, 1, 23)}.get(shape, ()):
            grads[step] = np.zeros(shape)
        made.append(Course(normal(shape, weight_scale), grads))
    return made


def warmup_then_cosine(step: int, peak: float) -> float:
    """Rates that change at every step: from 0 in 15 steps, then half a cosine."""
    if step < 15:
        return peak * step / 15
    return peak * 0.5 * (1 + math.cos(math.pi * (step - 15) / (NUM_STEPS - 15)))


class ErrorMeter:
    """Largest error of any tensor at any step, relative to the largest entry which that tensor has had up to then.

    Relative to the entries of the moment, the error of a scalar that crosses zero would measure cancellation.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self._scales: dict[str, float] = {}

    def compare(self, name: str, value: npt.NDArray[np.floating], truth: Float64Array) -> None:
        self._scales[name] = max(self._scales.get(name, 0.0), float(np.abs(truth).max()))
        error = float(np.abs(value - truth).max())
        if math.isnan(error):
            self.worst = math.inf
        elif error > 0:
            self.worst = max(self.worst, error / self._scales[name] if self._scales[name] > 0 else math.inf)

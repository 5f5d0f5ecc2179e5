"""LARS and LAMB in numpy and float64, one tensor at a time, written from the papers and from nothing of this package.

The only liberty: the ratio is 1 where a norm is 0, which the papers leave open. The defaults are the papers'; the
options are the differences of other implementations, each written from the source that has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def norm(array: Float64Array) -> float:
    return math.sqrt(np.sum(array**2))


class ReferenceLARS:
    """You, Gitman, Ginsburg 2017, Algorithm 1."""

    def __init__(
        self,
        weight: Float64Array,
        *,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        adapts: bool,
        denominator: str = "split",  # "joint": optax, SimCLR
        lr_placement: str = "inside",  # "outside": torch.optim.SGD behind the ratio
        nesterov: bool = False,
        clip: bool = False,  # apex LARC
        eps: float = 0.0,
        adapt_undecayed: bool = True,  # False: timm without always_adapt
    ) -> None:
        self.weight = weight.astype(np.float64)
        self.velocity = np.zeros_like(self.weight)
        self.momentum, self.decay, self.trust = momentum, weight_decay, trust_coefficient
        self.adapts = adapts and (weight_decay > 0 or adapt_undecayed)
        self.joint, self.inside = denominator == "joint", lr_placement == "inside"
        self.nesterov, self.clip, self.eps = nesterov, clip, eps

    def step(self, grad: Float64Array, lr: float) -> None:
        decayed = grad + self.decay * self.weight
        scaled = self._share(grad, decayed, lr) * decayed
        if self.inside:
            scaled = lr * scaled
        self.velocity = self.momentum * self.velocity + scaled
        step = self.momentum * self.velocity + scaled if self.nesterov else self.velocity
        self.weight = self.weight - (step if self.inside else lr * step)

    def _share(self, grad: Float64Array, decayed: Float64Array, lr: float) -> float:
        """The rate of this tensor as a share of the global one."""
        weight_norm, grad_norm = norm(self.weight), norm(decayed if self.joint else grad)
        if not self.adapts or weight_norm == 0 or grad_norm == 0:
            return 1.0
        denominator = grad_norm if self.joint else grad_norm + self.decay * weight_norm
        local_lr = self.trust * weight_norm / (denominator + self.eps)
        if self.clip:  # the smaller of both rates, not their product
            return min(local_lr, lr) / lr if lr > 0 else 1.0
        return local_lr


class ReferenceLAMB:
    """You et al. 2019 v5, Algorithm 2, with phi the identity."""

    def __init__(
        self,
        weight: Float64Array,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adapts: bool,
        bias_correction: bool = True,  # False: v3
        decay_placement: str = "inside",  # "outside": Keras, timm's decoupled_decay
        norm_bounds: tuple[float, float] | None = None,  # phi
        trust_clip: bool = False,  # LAMBC
        grad_averaging: bool = True,
        adapt_undecayed: bool = True,  # False: timm without always_adapt, apex without use_nvlamb
    ) -> None:
        self.weight = weight.astype(np.float64)
        self.m, self.v, self.t = np.zeros_like(self.weight), np.zeros_like(self.weight), 0
        self.betas, self.eps, self.decay = betas, eps, weight_decay
        self.adapts = adapts and (weight_decay > 0 or adapt_undecayed)
        self.bias_correction, self.decay_inside = bias_correction, decay_placement == "inside"
        self.lower, self.upper = norm_bounds or (0.0, math.inf)
        self.largest_ratio = 1.0 if trust_clip else math.inf
        self.grad_share = 1 - betas[0] if grad_averaging else 1.0

    def step(self, grad: Float64Array, lr: float) -> None:
        beta1, beta2 = self.betas
        self.t += 1
        self.m = beta1 * self.m + self.grad_share * grad
        self.v = beta2 * self.v + (1 - beta2) * grad**2
        m_hat, v_hat = self.m, self.v
        if self.bias_correction:
            m_hat, v_hat = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)
        update = m_hat / (np.sqrt(v_hat) + self.eps)
        if self.decay_inside:
            update = update + self.decay * self.weight
        else:
            self.weight = (1 - lr * self.decay) * self.weight
        self.weight = self.weight - lr * self._ratio(update) * update

    def _ratio(self, update: Float64Array) -> float:
        phi, update_norm = min(max(norm(self.weight), self.lower), self.upper), norm(update)
        if not self.adapts or phi == 0 or update_norm == 0:
            return 1.0
        return min(phi / update_norm, self.largest_ratio)


def prenormalised(grads: list[Float64Array], max_grad_norm: float | None) -> list[Float64Array]:
    """All gradients of a step, shortened together to that norm if they are longer (apex, timm, NVLAMB)."""
    if max_grad_norm is None:
        return grads
    global_norm = math.sqrt(sum(norm(grad) ** 2 for grad in grads))
    return [grad * max_grad_norm / global_norm for grad in grads] if global_norm > max_grad_norm else grads


NUM_STEPS, WARMUP_STEPS = 200, 50
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
    """Rates that change at every step: from 0 in 50 steps, then half a cosine down to a tenth."""
    if step < WARMUP_STEPS:
        return peak * step / WARMUP_STEPS
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - WARMUP_STEPS) / (NUM_STEPS - WARMUP_STEPS)))


@dataclass(frozen=True)
class Trajectory:
    """Everything that an algorithm knows after every step: arrays [NUM_STEPS, elements of all tensors] by name."""

    values: dict[str, npt.NDArray[np.floating]]
    starts: list[int]
    """Where each tensor begins among the elements."""

    def worst_errors(self, truth: Trajectory) -> dict[str, float]:
        """By name: the largest error of any tensor at any step, as a vector, relative to its longest value up to then.

        The truth may go on longer.

        Relative to the value of the moment, the error of a scalar that crosses zero would measure cancellation.
        """
        assert self.values.keys() == truth.values.keys()
        worst = {}
        for name, whole in truth.values.items():
            true = whole[: len(self.values[name])]
            errors = self._norms(self.values[name] - true)
            scales = np.maximum.accumulate(self._norms(true), axis=0)
            relative = np.divide(errors, scales, out=np.where(errors == 0, 0.0, np.inf), where=scales > 0)
            worst[name] = float(np.nan_to_num(relative, nan=np.inf).max())
        return worst

    def _norms(self, rows: npt.NDArray[np.floating]) -> Float64Array:
        squares: Float64Array = np.add.reduceat(rows.astype(np.float64) ** 2, self.starts, axis=1)
        return np.sqrt(squares)

"""Rise of a loss near the weights: in Keskar's box, and along SAM's ascent step.

Both depend on the scale of the weights: a rescaling that preserves the function changes them (Dinh et al. 2017). So
they compare runs of one architecture, not different architectures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Value = Callable[[Tensor], float]
ValueAndGradient = Callable[[Tensor], tuple[float, Tensor]]
_FIRST_STEP = 100.0  # first step of an average coordinate, in half widths of the box; the bounds clip it


@dataclass(frozen=True)
class BoxSharpness:
    """Keskar's sharpness phi and its inputs.

    Attributes:
        value: phi = 100 (max_loss - loss) / (1 + loss), in percent; never negative, since the centre is in the box.
        loss: loss at the centre of the box.
        max_loss: largest loss found in the box, a lower bound of the maximum.
        num_evaluations: evaluations of loss and gradient.
    """

    value: float
    loss: float
    max_loss: float
    num_evaluations: int


def box_sharpness(
    value_and_gradient: ValueAndGradient, weights: Tensor, start: Tensor, *, eps: float, max_iterations: int = 10
) -> BoxSharpness:
    """Keskar's phi over the box |y_i| <= eps (|w_i| + 1), by a few iterations of L-BFGS-B as in the paper.

    The search uses units of the box and of its first gradient, so that the first step does not depend on scale.

    Args:
        value_and_gradient: loss and its gradient at flat weights.
        weights: centre of the box, [p].
        start: start of the search in half widths of the box, each entry in [-1, 1]. Draw it at random: at a minimum the
            gradient is 0, and a search from the centre would stay there and report 0.
        eps: relative half width; 1e-3 and 5e-4 in the paper.
        max_iterations: iterations of L-BFGS-B; 10 in the paper.

    Raises:
        ValueError: if eps is not positive or the start is outside.

    Source: Keskar et al. 2017 (1609.04836), metric 2.1 with A = I.
    """
    if eps <= 0 or bool((start.abs() > 1).any()):
        raise ValueError(f"eps={eps}: must be positive, and the start within [-1, 1].")
    from scipy.optimize import minimize

    half_width = eps * (weights.abs() + 1)
    centre, _ = value_and_gradient(weights)
    best, count, scale = centre, 1, 0.0

    def objective(position: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        nonlocal best, count, scale
        step = torch.from_numpy(np.array(position)).to(weights) * half_width
        value, gradient = value_and_gradient(weights + step)
        slope = (gradient * half_width).double().cpu().numpy()
        if not math.isfinite(value):  # an overflow counts as the largest possible loss
            value, slope = math.inf, np.zeros_like(slope)
        best, count = max(best, value), count + 1
        scale = scale or _FIRST_STEP / (float(abs(slope).mean()) or 1.0)
        return -value * scale, -slope * scale

    bounds = [(-1.0, 1.0)] * len(weights)
    options = {"maxiter": max_iterations, "gtol": 0.0, "ftol": 0.0}
    minimize(objective, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return BoxSharpness(100 * (best - centre) / (1 + centre), centre, best, count)


def ascent_rise(value_and_gradient: ValueAndGradient, value: Value, weights: Tensor, *, rho: float) -> float:
    """L(w + rho g/|g|) - L(w): the rise of a loss along its own gradient g = L'(w), over the distance rho.

    First-order solution of SAM's maximum over the ball |e| <= rho. On a quadratic it is
    rho |g| + rho^2 g'Hg / (2 |g|^2): near a minimum, with g along the first eigenvector, rho^2 lambda_max / 2.
    If the gradient is exactly 0, the rise is 0.

    Source: Foret et al. 2021 (2010.01412), equation 2; its mean over groups of m samples is their m-sharpness.
    """
    if rho <= 0:
        raise ValueError(f"rho={rho}: a radius must be positive.")
    loss, gradient = value_and_gradient(weights)
    norm = float(gradient.double().norm())
    if norm == 0.0:
        return 0.0
    return value(weights + gradient * (rho / norm)) - loss

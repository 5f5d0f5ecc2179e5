"""The second moments of Adam and its kin: what a step divides by, and from when on that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_GRADIENTS, _NEARLY = 10, 0.9  # that a second moment must average, and how nearly


def is_young(state: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Whether the second moment v averages fewer than about ten gradients, or than it ever will if that is less.

    After t steps an average of decay b weighs as n = (1 - b^t) / (1 + b^t) (1 + b) / (1 - b) equal gradients do (Kish's
    effective sample size). Of n normal gradients of variance s, 1 / sqrt(v) has the mean

        sqrt(n / 2) Gamma((n - 1) / 2) / Gamma(n / 2) / sqrt(s)

    infinite for n = 1 and 8 % above 1 / sqrt(s) for n = 10; its variance is infinite up to n = 2 (derived here from the
    chi-square distribution). So in the first steps a few elements whose gradients happened to be small carry nearly all
    of tr(P Sigma).

    >>> [steps for steps in range(20) if is_young({"step": steps}, {"betas": (0.9, 0.999)})][-1]
    9
    >>> is_young({"step": 1}, {"alpha": 0.0})  # remembers one gradient
    False
    """
    beta, steps = float(group["alpha"] if "alpha" in group else group["betas"][1]), float(state["step"])
    if steps < 1 or beta >= 1:
        return True
    most = (1 + beta) / (1 - beta)
    found = (1 - beta**steps) / (1 + beta**steps) * most
    return found < _NEARLY * min(_GRADIENTS, most)


def second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """The one that a step divides by the root of, before any correction."""
    name = "square_avg" if "square_avg" in state else "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    found: Tensor = state[name]
    return found


def adam_divisor(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """sqrt(v) + eps, with v as the latest step took it."""
    if "square_avg" in state:  # RMSprop
        square = second_moment(state, group)
        if group["centered"]:
            square = square.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
        return square.sqrt().add_(group["eps"])
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    return second_moment(state, group).div(correction).sqrt_().add_(group["eps"])

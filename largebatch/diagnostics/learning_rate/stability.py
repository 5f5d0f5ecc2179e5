"""The rate from which on gradient descent on a quadratic diverges, out of the growth of a loss that has diverged.

In the direction of the largest curvature h, a step of rate r multiplies the distance from the minimum by -g with
g = r h - 1: it grows if r > 2/h. A range test sees that late. While the rate was small this direction has been
flattened most of all, and it must grow by as many orders of magnitude before it shows in the loss, at rates of 5 times
2/h and more, however fine the steps. Once it shows, it dominates, and its growth says where growth began: the loss
grows by g^2 per step, so h = (1 + g)/r. The estimate is well conditioned: an error of g counts by g/(1 + g) at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from largebatch.diagnostics.learning_rate.range_curve import RangeCurve

_LEAST_HELD = 4  # losses; fewer have no two halves
_LEAST_LOG_GROWTH = 0.25  # of the loss per step; a mean over noise that has grown by chance shows less
_LEAST_PERSISTENCE = 0.5  # growth of the second half of the steps over that of the first


@dataclass(frozen=True)
class Momentum:
    """How SGD remembers, as `torch.optim.SGD` has it with dampening 0: v = m v + grad, w = w - r v.

    Attributes:
        momentum: m in [0, 1).
        nesterov: w = w - r (grad + m v) instead.
    """

    momentum: float = 0.0
    nesterov: bool = False

    @property
    def formula(self) -> str:
        """The largest stable rate, for people."""
        if self.nesterov:
            return "(2 + 2 m)/((1 + 2 m) h_max)"
        return "2 (1 + m)/h_max" if self.momentum else "2/h_max"

    def scaled_curvature(self, growth: float) -> float:
        """R h of the direction whose amplitude a step multiplies by `-growth`, in the long run.

        -g is a root of z^2 - (1 + m - r h) z + m, for Nesterov of z^2 - (1 + m)(1 - r h) z + m (1 - r h).

        >>> [Momentum(m).scaled_curvature(1.0) for m in (0.0, 0.5)]  # 2 (1 + m)
        [2.0, 3.0]
        >>> Momentum(0.5, nesterov=True).scaled_curvature(1.0)  # 2 (1 + m) / (1 + 2 m)
        1.5
        """
        m = self.momentum
        if self.nesterov:
            return 1 + growth**2 / ((1 + m) * growth + m)
        return 1 + m + growth + m / growth


def momentum_of(optimizer: Optimizer) -> Momentum | None:
    """The memory of a plain SGD, None for others: their steps are not proportional to the gradient.

    Dampening, ascent, or groups that differ in momentum or in their rates count as others.
    """
    if type(optimizer) is not torch.optim.SGD:
        return None
    kinds = {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups}
    odd = any(group["dampening"] or group["maximize"] for group in optimizer.param_groups)
    if odd or len(kinds) != 1 or len({float(group["lr"]) for group in optimizer.param_groups}) != 1:
        return None
    momentum, nesterov = kinds.pop()
    return Momentum(float(momentum), bool(nesterov))


def stability_limit(curve: RangeCurve, momentum: Momentum = Momentum()) -> float | None:
    """Largest stable rate: 2/h_max on a quadratic, 2 (1 + m)/h_max with momentum.

    Of the steps at the last rate the second half is taken, where the largest curvature dominates most. If the loss
    does not go on growing there, nothing is told: it had risen by noise, or it is no quadratic, as where a network
    saturates. With mini-batches whose Hessians differ, the growth is that of their product, and the limit of such
    steps, which lies below 2/h_max of the whole set. A step of exactly 1/h_max would take that direction out of a
    quadratic without noise, and the next one would be found.

    Returns None, too, if the test did not diverge or did not hold its last rate.
    """
    growth = _log_growth(curve)
    if growth is None:
        return None
    # The loss is quadratic in the amplitude.
    scaled = momentum.scaled_curvature(math.exp(growth / 2))
    return float(curve.rates[-1]) * momentum.scaled_curvature(1.0) / scaled


def _log_growth(curve: RangeCurve) -> float | None:
    """Of the loss above its best, per step at the rate that was held; None if there is no steady growth."""
    if not curve.diverged or not math.isfinite(curve.losses[-1]):
        return None
    losses = np.concatenate([curve.losses[-1:], curve.held_losses])
    excess = losses[np.isfinite(losses)] - np.nanmin(curve.smoothed)
    last, middle = len(excess) - 1, len(excess) // 2
    if len(excess) < _LEAST_HELD or min(excess[0], excess[middle], excess[last]) <= 0:
        return None
    first_half = math.log(excess[middle] / excess[0]) / middle
    second_half = math.log(excess[last] / excess[middle]) / (last - middle)
    if min(first_half, second_half) < _LEAST_LOG_GROWTH or second_half < _LEAST_PERSISTENCE * first_half:
        return None
    return second_half

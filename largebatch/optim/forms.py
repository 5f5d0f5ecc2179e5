"""The forms of LARS and LAMB: the switches in which algorithms of these names differ, and their effect on a step.

A form is the switches, frozen. `terms` turns it and the numbers of a parameter group into the coefficients of one step,
the only thing that the five paths are given: the plain loops in `lars.py` and `lamb.py`, and the fast paths in
`kernels/`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from largebatch.optim.trust_ratio import TrustRatio


@dataclass(frozen=True)
class LarsForm:
    """The options of `LARS` that choose its formula, explained there. The defaults are the paper's."""

    denominator: str = "split"
    lr_placement: str = "inside"
    nesterov: bool = False
    clip: bool = False
    eps: float = 0.0
    adapt_undecayed: bool = True

    @property
    def is_fused(self) -> bool:
        """Whether the fused path has this form: torch's kernel has no per-tensor rate for Nesterov."""
        return self.denominator == "split" and not self.nesterov

    def terms(self, group: Mapping[str, Any], grad_norm: Tensor | None = None) -> LarsTerms:
        """The coefficients of one step on this group; LARS does not use `grad_norm`."""
        lr, decay, coefficient = group["lr"], group["weight_decay"], group["trust_coefficient"]
        is_joint = self.denominator == "joint"
        if self.clip:  # lr ratio becomes min(trust_coefficient ..., lr): the rate is a bound, the ratio the rate itself
            coefficient = coefficient / lr if lr > 0 else math.inf
        ratio = TrustRatio(coefficient, 0.0 if is_joint else decay, self.eps, at_most=1.0 if self.clip else None)
        return LarsTerms(
            decay=decay,
            momentum=group["momentum"],
            inner_lr=lr if self.lr_placement == "inside" else 1.0,
            outer_lr=1.0 if self.lr_placement == "inside" else lr,
            looks_ahead=self.nesterov,
            is_joint=is_joint and decay != 0,
            ratio=ratio if _adapts(group, self) else None,
        )


@dataclass(frozen=True)
class LarsTerms:
    """One LARS step on a tensor w with gradient g and velocity v.

        d = g + decay w
        v = momentum v + inner_lr ratio d
        w = w - outer_lr s        s = momentum v + inner_lr ratio d with the new v if it looks ahead, else v

    `ratio` is the rule for |w| and the norm of d (joint) or g; None stands for 1.
    """

    decay: float
    momentum: float
    inner_lr: float
    outer_lr: float
    looks_ahead: bool
    is_joint: bool
    ratio: TrustRatio | None


@dataclass(frozen=True)
class LambForm:
    """The options of `LAMB` that choose its formula, explained there. The defaults are the paper's (v5)."""

    bias_correction: bool = True
    decay_placement: str = "inside"
    norm_bounds: Sequence[float] | None = None
    trust_clip: bool = False
    max_grad_norm: float | None = None
    grad_averaging: bool = True
    adapt_undecayed: bool = True

    @property
    def is_fused(self) -> bool:
        """Whether the fused path has this form: torch's AdamW kernel can express it."""
        is_adamw = self.bias_correction and self.decay_placement == "inside" and self.grad_averaging
        return is_adamw and self.max_grad_norm is None

    def terms(self, group: Mapping[str, Any], grad_norm: Tensor | None = None) -> LambTerms:
        """The coefficients of one step on this group; `grad_norm` is the norm of the gradients of all groups."""
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        ratio = TrustRatio(norm_bounds=self.norm_bounds, at_most=1.0 if self.trust_clip else None)
        return LambTerms(
            lr=lr,
            beta1=beta1,
            grad_share=1 - beta1 if self.grad_averaging else 1.0,
            beta2=beta2,
            eps=group["eps"],
            place="nowhere" if decay == 0 else self.decay_placement,
            decay=lr * decay if self.decay_placement == "outside" else decay,
            bias_correction=self.bias_correction,
            ratio=ratio if _adapts(group, self) else None,
            max_grad_norm=self.max_grad_norm,
            grad_norm=grad_norm,
        )


@dataclass(frozen=True)
class LambTerms:
    """One LAMB step on a tensor w with gradient g and moments m and v.

        g = g / divisor
        m = beta1 m + grad_share g
        v = beta2 v + (1 - beta2) g^2
        w = w - decay w                                                     if the place of the decay is "outside"
        u = m / correction1 / (sqrt(v / correction2) + eps)  [+ decay w     if the place is "inside"]
        w = w - lr ratio u

    `ratio` is the rule for |w| and |u|; None stands for 1.
    """

    lr: float
    beta1: float
    grad_share: float
    beta2: float
    eps: float
    place: str
    decay: float
    bias_correction: bool
    ratio: TrustRatio | None
    max_grad_norm: float | None = None
    grad_norm: Tensor | None = None

    def corrections(self, step: float) -> tuple[float, float]:
        """1 - beta1^t and 1 - beta2^t in double precision at step t, or 1 and 1."""
        return (1 - self.beta1**step, 1 - self.beta2**step) if self.bias_correction else (1.0, 1.0)

    def scale_and_eps(self, step: float, root: Callable[[float], float] = math.sqrt) -> tuple[float, float]:
        """For u as scale m / (sqrt(v) + eps), one division less: root2 / correction1, and eps root2.

        `root2` is the square root of correction2, by `root`.
        """
        correction1, correction2 = self.corrections(step)
        root2 = root(correction2)
        return root2 / correction1, self.eps * root2

    def divisor(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The divisor of gradients: 1 up to `max_grad_norm`. A scalar on the device and in the dtype of the state."""
        if self.max_grad_norm is None:
            return None
        assert self.grad_norm is not None
        return (self.grad_norm / self.max_grad_norm).clamp_(min=1.0).to(device, dtype, non_blocking=True)


Form = TypeVar("Form", bound=LarsForm | LambForm)


def form_of(form: type[Form], group: Mapping[str, Any]) -> Form:
    """The form of a parameter group."""
    return form(**{name: group[name] for name in form.__dataclass_fields__})


def _adapts(group: Mapping[str, Any], form: LarsForm | LambForm) -> bool:
    return bool(group["adapts"] and (group["weight_decay"] != 0 or form.adapt_undecayed))

"""The geometry in which an optimizer descends: its preconditioner P before a step, and g'Pg of gradients.

With P fixed, the step w - lr P g changes the loss L with gradient G and Hessian H by

    E dL = -lr G'PG + lr^2/2 (G'PHPG + tr(HP Sigma P)/B)

(McCandlish et al. 2018, equation 2.4, for P = 1), so at the best rate a batch of tr(HP Sigma P)/(G'PHPG) samples halves
the decrease. In the coordinates P^(-1/2) w the method is plain SGD: there the gradient is P^(1/2) G, the covariance
P^(1/2) Sigma P^(1/2) and the Hessian P^(1/2) H P^(1/2). The simple noise scale puts the identity in place of the
Hessian, and in these coordinates it is

    B = tr(P Sigma) / (G'PG)

the noise over the signal in the norm dual to the optimizer's, |G|^2 = G'PG, by which the loss falls per unit of the
rate. For P = 1 it is tr(Sigma)/|G|^2, and it does not depend on the coordinates that the weights are written in. It is
exact where P is the inverse Hessian; where P is H^(-1/2), the Euclidean one is (derived here; tested on quadratics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Muon, NAdam, Optimizer, RMSprop

from largebatch.optim.forms import LambTerms, LarsTerms
from largebatch.optim.lamb import LAMB, lamb_update
from largebatch.optim.lars import LARS
from largebatch.optim.muon import MuonWithAdamW
from largebatch.optim.second_moments import adam_divisor, is_young, second_moment
from largebatch.optim.state import wide_dtype
from largebatch.optim.trust_ratio import l2_norm

KNOWN = (SGD, LARS, Adam, AdamW, NAdam, RMSprop, LAMB, Muon, MuonWithAdamW)


@dataclass(frozen=True)
class Metric:
    """The block of P that belongs to one parameter.

    Attributes:
        sq_norm: g'Pg of a gradient of the parameter, float64 scalar on its device, without the factor.
        factor: of the whole block, from the gradient of the whole batch; None: 1. It is LARS's trust ratio.
    """

    sq_norm: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Tensor] | None = None


class OptimizerGeometry:
    """The preconditioner of an optimizer at each of its steps, from its state before the step.

    | optimizer | P of a tensor, times the group's rate over the largest rate of a group |
    |---|---|
    | SGD | 1 |
    | LARS | trust ratio; the norm of the gradient in it is that of the step, before clipping |
    | Adam, AdamW, NAdam, RMSprop | 1 / (sqrt(v) + eps) of each element, with v as the step divides by it |
    | LAMB | the same, times the trust ratio of the latest update |
    | Muon | NS(M M'), the product of Newton and Schulz's polynomials: P M is the step of the momentum M |

    The state is older than the gradient that is measured, so given the state both moments are unbiased. LARS keeps no
    gradient: its ratio leaves a relative bias of the order of the variance of log |g| of a layer.

    Momentum and weight decay do not enter: they are the same for any batch. A parameter that the optimizer does not
    hold, or that has no state yet, has the block 0.

    The same holds for a second moment that is young, see `is_young`, and for an element that never had a gradient: its
    1 / eps is not what it will be divided by, as the step that brings a gradient takes that one in first.

    Args:
        optimizer: of one of these classes; one that inherits may take another step.

    Raises:
        ValueError: for another class, whose preconditioner is not known, or coefficients of Muon's whose polynomial is
            not positive.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in KNOWN:
            raise ValueError(
                f"The preconditioner of {type(optimizer).__name__} is not known, so its geometry cannot be measured: "
                f"known are {', '.join(one.__name__ for one in KNOWN)}. Use the Euclidean noise scale."
            )
        for group in optimizer.param_groups:
            if "ns_coefficients" in group:
                _require_positive(group["ns_coefficients"])
        self._optimizer = optimizer

    @property
    def is_euclidean(self) -> bool:
        """Whether P is a multiple of the identity at any step: SGD with one rate."""
        factors = {group.get("lr_factor", 1.0) for group in self._optimizer.param_groups}
        return isinstance(self._optimizer, SGD) and len(factors) == 1

    @torch.no_grad()
    def metrics(self, parameters: Sequence[Tensor]) -> list[Metric | None] | None:
        """The blocks of P of these parameters at the next step; None while all are 0, as before the first step of Adam.

        It reads the state and keeps a tensor of the size of each parameter that Adam takes, and a square matrix of the
        smaller side of each that Muon takes.
        """
        found: dict[Tensor, Metric | None] = {}
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        if not any(rates):  # at the start of a warmup from 0
            rates = [group.get("lr_factor", 1.0) for group in self._optimizer.param_groups]
        states = self._states()
        # Muon's state has no age: it waits for its AdamW.
        members = [(one, group) for group in self._optimizer.param_groups for one in group["params"]]
        ages = [is_young(states[one], group) for one, group in members if "step" in states[one]]
        if ages and all(ages):
            return None
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            for one in group["params"]:
                found[one] = self._metric(group, one, states[one], rate / max(rates))
        blocks = [found.get(one) for one in parameters]
        return blocks if any(one is not None for one in blocks) else None

    def _states(self) -> dict[Tensor, dict[str, Any]]:
        """Of every parameter, with its step as a number: those of fused optimizers lie on the device, read at once."""
        members = [one for group in self._optimizer.param_groups for one in group["params"]]
        states = {one: dict(self._optimizer.state.get(one, {})) for one in members}
        steps = {one: torch.as_tensor(state["step"]) for one, state in states.items() if "step" in state}
        if steps:
            found = torch.stack([step.float() for step in steps.values()]).tolist()
            for one, step in zip(steps, found, strict=True):
                states[one]["step"] = step
        return states

    def _metric(self, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any], rate: float) -> Metric | None:
        optimizer = self._optimizer
        if isinstance(optimizer, SGD):
            return _scalar(rate)
        if isinstance(optimizer, LARS):
            terms = optimizer.terms(group)
            assert isinstance(terms, LarsTerms)
            return Metric(_scalar(rate).sq_norm, _lars_ratio(param, terms))
        if not state or ("step" in state and is_young(state, group)):
            return None
        if group.get("muon") or isinstance(optimizer, Muon):
            return _spectral(state["momentum_buffer"], group, rate)
        if isinstance(optimizer, LAMB):
            lamb = optimizer.terms(group)
            assert isinstance(lamb, LambTerms)
            weights = _lamb_ratio(param, state, lamb) * rate / _lamb_divisor(state, lamb)
        else:
            weights = rate / adam_divisor(state, group)
        return _diagonal(weights.masked_fill_(second_moment(state, group) == 0, 0.0))


def _scalar(rate: float) -> Metric:
    return Metric(lambda gradient: l2_norm(gradient).double().square() * rate)


def _diagonal(weights: Tensor) -> Metric:
    """P = diag(weights): |sqrt(P) g|^2, whose elements are no larger than they must be, then summed with care."""
    root = weights.sqrt_()
    return Metric(lambda gradient: l2_norm(gradient.to(root.dtype) * root).double().square())


def _lamb_divisor(state: Mapping[str, Any], terms: LambTerms) -> Tensor:
    _, correction = terms.corrections(float(state["step"]))
    divisor: Tensor = state["exp_avg_sq"].div(correction).sqrt_().add_(terms.eps)
    return divisor


def _lamb_ratio(param: Tensor, state: Mapping[str, Any], terms: LambTerms) -> Tensor | float:
    if terms.ratio is None:
        return 1.0
    weight = param.detach().to(wide_dtype(param))
    update = lamb_update(weight, state["exp_avg"], state["exp_avg_sq"], state["step"], terms)
    return terms.ratio.of_tensors(l2_norm(weight), l2_norm(update))


def _lars_ratio(param: Tensor, terms: LarsTerms) -> Callable[[Tensor], Tensor] | None:
    rule = terms.ratio
    if rule is None:
        return None

    def ratio(gradient: Tensor) -> Tensor:
        weight, direction = param.detach().to(wide_dtype(param)), gradient.to(wide_dtype(gradient))
        if terms.is_joint:
            direction = direction.add(weight, alpha=terms.decay)
        return rule.of_tensors(l2_norm(weight), l2_norm(direction)).double()

    return ratio


def _spectral(momentum: Tensor, group: Mapping[str, Any], rate: float) -> Metric:
    """P with P M = what `torch.optim.Muon` makes of the momentum M, but for its rounding to bfloat16.

    An iteration is M_(k+1) = Q_k M_k with Q = a + b A + c A^2 and A = M_k M_k', so the product of all Q over the norm
    of M is P; and A_(k+1) = Q_k^2 A_k, because polynomials of one matrix commute.
    """
    matrix = momentum.to(wide_dtype(momentum))
    is_tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if is_tall else matrix
    norm = matrix.norm().clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    gram = matrix @ matrix.T / norm**2
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(group["ns_steps"]):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ factor @ gram
    weights = product * (rate * _shape_factor(group["adjust_lr_fn"], momentum.shape) / norm)

    def sq_norm(gradient: Tensor) -> Tensor:
        wide = gradient.to(weights.dtype)
        stepped = wide @ weights if is_tall else weights @ wide
        return (wide * stepped).sum(dtype=torch.float64)

    return Metric(sq_norm)


def _shape_factor(rule: str | None, shape: Sequence[int]) -> float:
    """What `torch.optim.Muon` multiplies the rate of an A x B matrix by."""
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(shape))
    return math.sqrt(max(1, shape[0] / shape[1]))


def _require_positive(coefficients: Sequence[float]) -> None:
    """The polynomial a + b x + c x^2 must be above 0 at all squares of singular values up to 1."""
    a, b, c = coefficients
    lowest = min(max(-b / (2 * c), 0.0), 1.0) if c > 0 else 1.0
    if min(a, a + b + c, a + b * lowest + c * lowest**2) <= 0:
        raise ValueError(
            f"ns_coefficients={tuple(coefficients)}: a + b x + c x^2 is not above 0 for all x in [0, 1], so Muon's "
            "preconditioner has no norm. Use the Euclidean noise scale."
        )

"""One LARS step on lists of tensors: a plain loop, and one call per operation over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from largebatch.optim.forms import LarsForm
from largebatch.optim.state import same_kind, uses_foreach, widened
from largebatch.optim.trust_ratio import l2_norm, l2_norms, trust_ratio

_PAPER = LarsForm()


def lars(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    foreach: bool | None = None,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm = _PAPER,
) -> None:
    """One LARS step on lists of tensors: changes `params` and `momentum_buffers`, reads `grads`. See `LARS`."""
    step = _multi_tensor_lars if uses_foreach(foreach, params) else _single_tensor_lars
    for same_params, same_grads, same_buffers in same_kind(params, grads, momentum_buffers):
        step(
            same_params,
            same_grads,
            same_buffers,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            adapts=adapts and (weight_decay != 0 or form.adapt_undecayed),
            form=form,
        )


def _single_tensor_lars(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm,
) -> None:
    inner_lr, outer_lr = _placed(lr, form)
    for param, param_grad, velocity in zip(params, grads, momentum_buffers, strict=True):
        weight, grad = widened([param, param_grad], velocity.dtype)
        direction = grad.add(weight, alpha=weight_decay) if weight_decay != 0 else grad
        ratio = None
        if adapts:
            norm = l2_norm(grad if form.denominator == "split" else direction)
            ratio = _ratio(l2_norm(weight), norm, lr, weight_decay, trust_coefficient, form)
        _add(velocity.mul_(momentum), direction, ratio, inner_lr)
        step = velocity
        if form.nesterov:
            step = _add(velocity.mul(momentum), direction, ratio, inner_lr)
        weight.sub_(step, alpha=outer_lr)
        if weight is not param:
            param.copy_(weight)


def _multi_tensor_lars(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm,
) -> None:
    inner_lr, outer_lr = _placed(lr, form)
    dtype = momentum_buffers[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    directions = list(torch._foreach_add(grads, weights, alpha=weight_decay)) if weight_decay != 0 else grads
    ratios = None
    if adapts:
        norms = l2_norms(grads if form.denominator == "split" else directions)
        of_all = _ratio(l2_norms(weights), norms, lr, weight_decay, trust_coefficient, form)
        ratios = list(of_all.unbind())
    torch._foreach_mul_(momentum_buffers, momentum)
    _foreach_add(momentum_buffers, directions, ratios, inner_lr)
    steps = momentum_buffers
    if form.nesterov:
        steps = list(torch._foreach_mul(momentum_buffers, momentum))
        _foreach_add(steps, directions, ratios, inner_lr)
    torch._foreach_sub_(weights, steps, alpha=outer_lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)


def _placed(lr: float, form: LarsForm) -> tuple[float, float]:
    """The rate inside the velocity and the one outside of it."""
    return (lr, 1.0) if form.lr_placement == "inside" else (1.0, lr)


def _ratio(
    weight_norm: Tensor,
    direction_norm: Tensor,
    lr: float,
    weight_decay: float,
    trust_coefficient: float,
    form: LarsForm,
) -> Tensor:
    if form.clip:  # lr ratio becomes min(trust_coefficient ..., lr): the rate is a bound, the ratio the rate itself
        trust_coefficient = trust_coefficient / lr if lr > 0 else math.inf
    return trust_ratio(
        weight_norm,
        direction_norm,
        coefficient=trust_coefficient,
        weight_decay=weight_decay if form.denominator == "split" else 0.0,
        eps=form.eps,
        at_most=1.0 if form.clip else None,
    )


def _add(to: Tensor, direction: Tensor, ratio: Tensor | None, lr: float) -> Tensor:
    """Add lr ratio direction to `to`, in place."""
    return to.add_(direction, alpha=lr) if ratio is None else to.addcmul_(direction, ratio, value=lr)


def _foreach_add(to: list[Tensor], directions: list[Tensor], ratios: list[Tensor] | None, lr: float) -> None:
    """`_add` on lists."""
    if ratios is None:
        torch._foreach_add_(to, directions, alpha=lr)
    else:
        torch._foreach_addcmul_(to, directions, ratios, value=lr)

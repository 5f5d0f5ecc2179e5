"""LARS and LAMB with one call per operation over all tensors; on a CPU with the bits of the plain loops."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.optim.forms import LambTerms, LarsTerms
from largebatch.optim.state import widened
from largebatch.optim.trust_ratio import l2_norms


def foreach_lars(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], terms: LarsTerms) -> None:
    """One LARS step on tensors of one device and dtype."""
    dtype = velocities[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    directions = list(torch._foreach_add(grads, weights, alpha=terms.decay)) if terms.decay != 0 else grads
    ratios = None
    if terms.ratio is not None:
        norms = l2_norms(directions if terms.is_joint else grads)
        ratios = list(terms.ratio.of_tensors(l2_norms(weights), norms).unbind())
    torch._foreach_mul_(velocities, terms.momentum)
    _add(velocities, directions, ratios, terms.inner_lr)
    steps = velocities
    if terms.looks_ahead:
        steps = list(torch._foreach_mul(velocities, terms.momentum))
        _add(steps, directions, ratios, terms.inner_lr)
    torch._foreach_sub_(weights, steps, alpha=terms.outer_lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)


def foreach_lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    terms: LambTerms,
) -> None:
    """One LAMB step on tensors of one device and dtype."""
    dtype = exp_avgs[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    divisor = terms.divisor(exp_avgs[0].device, dtype)
    if divisor is not None:
        grads = list(torch._foreach_div(grads, divisor))
    torch._foreach_mul_(exp_avgs, terms.beta1)
    torch._foreach_add_(exp_avgs, grads, alpha=terms.grad_share)
    torch._foreach_mul_(exp_avg_sqs, terms.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - terms.beta2)
    corrections = [terms.corrections(float(state_step)) for state_step in state_steps]
    updates = list(torch._foreach_div(exp_avgs, [correction1 for correction1, _ in corrections]))
    denominators = torch._foreach_div(exp_avg_sqs, [correction2 for _, correction2 in corrections])
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, terms.eps)
    torch._foreach_div_(updates, denominators)
    if terms.place == "inside":
        torch._foreach_add_(updates, weights, alpha=terms.decay)
    elif terms.place == "outside":
        torch._foreach_add_(weights, weights, alpha=-terms.decay)
    ratios = None
    if terms.ratio is not None:
        ratios = list(terms.ratio.of_tensors(l2_norms(weights), l2_norms(updates)).unbind())
    _add(weights, updates, ratios, -terms.lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)


def _add(to: list[Tensor], directions: list[Tensor], ratios: list[Tensor] | None, lr: float) -> None:
    """Add lr ratio direction to each of `to`, in place; without ratios they are 1."""
    if ratios is None:
        torch._foreach_add_(to, directions, alpha=lr)
    else:
        torch._foreach_addcmul_(to, directions, ratios, value=lr)

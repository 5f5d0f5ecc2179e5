"""One LARS step on lists of tensors: a plain loop, and one call per operation over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch.optim.checks import check_paths
from largebatch.optim.forms import LarsForm
from largebatch.optim.kernels.compiled import compiled_lars, rows_in_place
from largebatch.optim.kernels.flat import require_fused_form, rows_of_one_dtype, split_off_fused
from largebatch.optim.kernels.fused_lars import fused_lars
from largebatch.optim.kernels.kernel_paths import split_by_device
from largebatch.optim.kernels.triton_steps import triton_lars
from largebatch.optim.kernels.triton_tables import works
from largebatch.optim.state import same_kind, uses_foreach, widened
from largebatch.optim.trust_ratio import l2_norm, l2_norms, trust_ratio

_PAPER = LarsForm()


def lars(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    compile: bool = False,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm = _PAPER,
) -> None:
    """One LARS step on lists of tensors: changes `params` and `momentum_buffers`, reads `grads`. See `LARS`."""
    options: dict[str, Any] = {
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "trust_coefficient": trust_coefficient,
        "adapts": adapts and (weight_decay != 0 or form.adapt_undecayed),
        "form": form,
    }
    if compile:
        check_paths(foreach, fused, compile=True)
        on_cpu, on_gpu = split_by_device(params, grads, momentum_buffers)
        parts, launches = rows_in_place(*on_cpu), works(*on_gpu)  # both before anything moves
        for rows in parts:
            compiled_lars(rows, **options)
        triton_lars(launches, on_gpu[0], **options)
        return
    fused = require_fused_form(fused, form)
    fast, others = split_off_fused(foreach, fused, params, grads, momentum_buffers)
    for rows in rows_of_one_dtype(fast):
        fused_lars(rows, **options)
    step = _multi_tensor_lars if uses_foreach(foreach, params) else _single_tensor_lars
    for same in same_kind(*others):
        step(*same, **options)


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
    inner_lr, outer_lr = form.placed(lr)
    options = form.ratio_options(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
    for param, param_grad, velocity in zip(params, grads, momentum_buffers, strict=True):
        weight, grad = widened([param, param_grad], velocity.dtype)
        direction = grad.add(weight, alpha=weight_decay) if weight_decay != 0 else grad
        ratio = None
        if adapts:
            norm = l2_norm(grad if form.denominator == "split" else direction)
            ratio = trust_ratio(l2_norm(weight), norm, **options)
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
    inner_lr, outer_lr = form.placed(lr)
    options = form.ratio_options(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
    dtype = momentum_buffers[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    directions = list(torch._foreach_add(grads, weights, alpha=weight_decay)) if weight_decay != 0 else grads
    ratios = None
    if adapts:
        norms = l2_norms(grads if form.denominator == "split" else directions)
        of_all = trust_ratio(l2_norms(weights), norms, **options)
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


def _add(to: Tensor, direction: Tensor, ratio: Tensor | None, lr: float) -> Tensor:
    """Add lr ratio direction to `to`, in place."""
    return to.add_(direction, alpha=lr) if ratio is None else to.addcmul_(direction, ratio, value=lr)


def _foreach_add(to: list[Tensor], directions: list[Tensor], ratios: list[Tensor] | None, lr: float) -> None:
    """`_add` on lists."""
    if ratios is None:
        torch._foreach_add_(to, directions, alpha=lr)
    else:
        torch._foreach_addcmul_(to, directions, ratios, value=lr)

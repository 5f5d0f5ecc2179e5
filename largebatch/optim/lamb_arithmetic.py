"""One LAMB step on lists of tensors: a plain loop, and one call per operation over all of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from largebatch.optim.checks import check_paths
from largebatch.optim.forms import LambForm
from largebatch.optim.kernels.compiled import compiled_lamb, rows_in_place
from largebatch.optim.kernels.flat import require_fused_form, rows_of_one_dtype, split_off_fused
from largebatch.optim.kernels.fused_lamb import fused_lamb
from largebatch.optim.kernels.kernel_paths import split_by_device
from largebatch.optim.kernels.triton_steps import triton_lamb
from largebatch.optim.kernels.triton_tables import works
from largebatch.optim.state import same_kind, uses_foreach, widened
from largebatch.optim.trust_ratio import l2_norm, l2_norms, trust_ratio

_PAPER = LambForm()


def lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    compile: bool = False,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm = _PAPER,
    grad_norm: Tensor | None = None,
) -> None:
    """One LAMB step on lists of tensors: changes all but `grads`; `state_steps` are scalars on the CPU. See `LAMB`.

    `grad_norm` is the norm that `form.max_grad_norm` is compared with: that of the gradients of all groups.
    """
    options: dict[str, Any] = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "adapts": adapts and (weight_decay != 0 or form.adapt_undecayed),
        "form": form,
    }
    if compile:
        check_paths(foreach, fused, compile=True)
        _lamb_of_kernels([params, grads, exp_avgs, exp_avg_sqs, state_steps], options, grad_norm)
        return
    fused = require_fused_form(fused, form)
    fast, others = split_off_fused(foreach, fused, params, grads, exp_avgs, exp_avg_sqs, scalars=state_steps)
    for rows in rows_of_one_dtype(fast):
        fused_lamb(rows, **options)
    step = _multi_tensor_lamb if uses_foreach(foreach, params) else _single_tensor_lamb
    for same in same_kind(*others):
        step(*same, **options, grad_divisor=_grad_divisor(grad_norm, same[2][0].device, same[2][0].dtype, form))


def _lamb_of_kernels(columns: list[list[Tensor]], options: dict[str, Any], grad_norm: Tensor | None) -> None:
    on_cpu, on_gpu = split_by_device(*columns)
    parts, launches = rows_in_place(*on_cpu[:4], scalars=on_cpu[4]), works(*on_gpu[:4])  # both before anything moves
    if columns[4]:
        torch._foreach_add_(columns[4], torch.tensor(1.0, device="cpu"), alpha=1.0)
    divisor_of = partial(_grad_divisor, grad_norm, form=options["form"])
    for rows in parts:
        divisor = divisor_of(rows[0][2].device, rows[0][2].dtype)
        compiled_lamb(rows, **options, grad_divisor=1.0 if divisor is None else float(divisor))
    triton_lamb(launches, on_gpu[0], on_gpu[4], **options, divisor_of=divisor_of)


def _single_tensor_lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm,
    grad_divisor: Tensor | None,
) -> None:
    for param, param_grad, exp_avg, exp_avg_sq, state_step in zip(
        params, grads, exp_avgs, exp_avg_sqs, state_steps, strict=True
    ):
        weight, grad = widened([param, param_grad], exp_avg.dtype)
        if grad_divisor is not None:
            grad = grad.div(grad_divisor)
        state_step.add_(1)
        exp_avg.mul_(beta1).add_(grad, alpha=_grad_share(beta1, form))
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if weight_decay != 0 and form.decay_placement == "outside":
            weight.add_(weight, alpha=-lr * weight_decay)  # 1 - lr weight_decay would be rounded, each time alike
        update = lamb_update(
            weight, exp_avg, exp_avg_sq, state_step, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, form=form
        )
        if adapts:
            weight.addcmul_(update, trust_ratio(l2_norm(weight), l2_norm(update), **form.ratio_options), value=-lr)
        else:
            weight.add_(update, alpha=-lr)
        if weight is not param:
            param.copy_(weight)


def lamb_update(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    state_step: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    form: LambForm,
) -> Tensor:
    """The update u of a tensor, whose norm the ratio is taken of, from moments that have seen this step's gradient."""
    correction1, correction2 = _bias_corrections(state_step, *betas, form)
    update = exp_avg.div(correction1).div_(exp_avg_sq.div(correction2).sqrt_().add_(eps))
    if weight_decay != 0 and form.decay_placement == "inside":
        update.add_(weight, alpha=weight_decay)
    return update


def _multi_tensor_lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm,
    grad_divisor: Tensor | None,
) -> None:
    dtype = exp_avgs[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    if grad_divisor is not None:
        grads = list(torch._foreach_div(grads, grad_divisor))
    torch._foreach_add_(state_steps, 1)
    torch._foreach_mul_(exp_avgs, beta1)
    torch._foreach_add_(exp_avgs, grads, alpha=_grad_share(beta1, form))
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
    updates = _foreach_adam_updates(exp_avgs, exp_avg_sqs, state_steps, beta1, beta2, eps, form)
    if weight_decay != 0 and form.decay_placement == "inside":
        torch._foreach_add_(updates, weights, alpha=weight_decay)
    elif weight_decay != 0:
        torch._foreach_add_(weights, weights, alpha=-lr * weight_decay)
    if adapts:
        ratios = trust_ratio(l2_norms(weights), l2_norms(updates), **form.ratio_options)
        torch._foreach_addcmul_(weights, updates, list(ratios.unbind()), value=-lr)
    else:
        torch._foreach_add_(weights, updates, alpha=-lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)


def _foreach_adam_updates(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    form: LambForm,
) -> list[Tensor]:
    corrections = [_bias_corrections(state_step, beta1, beta2, form) for state_step in state_steps]
    updates = torch._foreach_div(exp_avgs, [correction1 for correction1, _ in corrections])
    denominators = torch._foreach_div(exp_avg_sqs, [correction2 for _, correction2 in corrections])
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(updates, denominators)
    return list(updates)


def _grad_divisor(grad_norm: Tensor | None, device: torch.device, dtype: torch.dtype, form: LambForm) -> Tensor | None:
    """What the gradients are divided by, on the device and in the dtype of their state: 1 up to the largest norm."""
    if form.max_grad_norm is None:
        return None
    assert grad_norm is not None
    return (grad_norm / form.max_grad_norm).clamp_(min=1.0).to(device, dtype, non_blocking=True)


def _grad_share(beta1: float, form: LambForm) -> float:
    return 1 - beta1 if form.grad_averaging else 1.0


def _bias_corrections(state_step: Tensor, beta1: float, beta2: float, form: LambForm) -> tuple[float, float]:
    """1 - beta1^t and 1 - beta2^t in double precision, or 1 and 1."""
    if not form.bias_correction:
        return 1.0, 1.0
    steps = float(state_step)
    return 1 - beta1**steps, 1 - beta2**steps

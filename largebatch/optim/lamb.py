"""LAMB: layer-wise adaptive moments (You et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from largebatch.optim.checks import check_hyperparameters, refuse_complex
from largebatch.optim.flat import check_paths, rows_of_one_dtype, split_off_fused
from largebatch.optim.fused_lamb import fused_lamb
from largebatch.optim.state import (
    load_unrounded,
    params_and_grads,
    same_kind,
    uses_foreach,
    wide_zeros,
    widened,
)
from largebatch.optim.trust_ratio import l2_norm, l2_norms, trust_ratio


class LAMB(Optimizer):
    """Adam's update with decay, stretched in every tensor to lr times the norm of that tensor.

        m     = beta1 m + (1 - beta1) g                   v = beta2 v + (1 - beta2) g^2     m = v = 0 at first
        r     = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)                       t = 1 at the first step
        u     = r + weight_decay w
        ratio = |w| / |u|                                 1 where |w| = 0 or |u| = 0
        w     = w - lr ratio u

    for every tensor w with gradient g; |.| is the L2 norm of the whole tensor. Source: You et al. 2019, "Large batch
    optimization for deep learning: training BERT in 76 minutes" (arXiv 1904.00962 v5), Algorithm 2, with phi the
    identity. Hence a step is exactly lr |w| long, whatever the gradient; only at ratio 1 it is lr |u|.

    More than one algorithm has this name. It differs from

    - torch.optim.AdamW: in the ratio alone. With adapts=False it is AdamW;
    - timm, whose defaults first clip gradients to a global norm of 1 and give tensors with weight_decay=0 no ratio;
    - optax: in nothing;
    - version 3 of the paper: there is no bias correction; ports of it clip |w| at 10 as well.

    Each parameter group has two independent flags: `weight_decay` (0: does not decay) and `adapts` (False: ratio 1). No
    parameter is treated apart by its shape or name: `parameter_groups` makes the groups.

    `p.grad` is only read. Norms, state and arithmetic are float32, or the parameter's dtype where that is wider; a
    bfloat16 or float16 weight is rounded once per step.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0: the length of a step relative to |w|; a schedule writes `group["lr"]`.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: >= 0. With 0 an element whose gradients were all 0 becomes NaN.
        weight_decay: >= 0. It turns the step towards -w; the length of the step stays.
        adapts: default of the group flag.
        foreach: True for one call per operation over many tensors, False for a plain loop; None takes the former unless
            a parameter is a tensor subclass. Temporary memory: 64 MiB, or twice the size of the largest tensor if more.
        fused: True for torch's fused AdamW kernel with 4.5 % of the group as temporary memory, False never. None takes
            it, if `foreach` is None too, for plain float32 and float64 tensors on a CPU whose gradient and state lie in
            memory in the same order, without gaps. True demands that of all.

    Raises:
        ValueError: if a number is out of range, here or in a group, a parameter is complex, or fused=True
            cannot be.
        RuntimeError: from `step`, if a gradient is sparse.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> w.grad = torch.tensor([0.0, 2.0])
    >>> LAMB([w], lr=0.1, weight_decay=0.0).step()  # along [0, 1], 0.1 * 5 long
    >>> w.data
    tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapts: bool = True,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapts": adapts,
            "foreach": foreach,
            "fused": fused,
        }
        check_paths(foreach, fused)
        check_hyperparameters(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; values it does not name are the optimizer's. Raises ValueError as the constructor does."""
        given = {**self.defaults, **param_group}
        check_hyperparameters(given)
        check_paths(given["foreach"], given["fused"])
        super().add_param_group(param_group)
        refuse_complex(self.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, at full precision and without sharing its memory."""
        load_unrounded(self, super().load_state_dict, state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; returns what `closure` returned, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads = params_and_grads(group)
            states = [self._state(param) for param in params]
            lamb(
                params,
                grads,
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["step"] for state in states],
                foreach=group["foreach"],
                fused=group.get("fused"),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                adapts=group["adapts"],
            )
        return loss

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # on the CPU: reading it does not wait for the device
            state["exp_avg"] = wide_zeros(param)
            state["exp_avg_sq"] = wide_zeros(param)
        return state


def lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
) -> None:
    """One LAMB step on lists of tensors: changes all but `grads`; `state_steps` are scalars on the CPU. See `LAMB`."""
    options: dict[str, Any] = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "adapts": adapts,
    }
    fast, others = split_off_fused(foreach, fused, params, grads, exp_avgs, exp_avg_sqs, scalars=state_steps)
    for rows in rows_of_one_dtype(fast):
        fused_lamb(rows, **options)
    step = _multi_tensor_lamb if uses_foreach(foreach, params) else _single_tensor_lamb
    for same in same_kind(*others):
        step(*same, **options)


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
) -> None:
    for param, param_grad, exp_avg, exp_avg_sq, state_step in zip(
        params, grads, exp_avgs, exp_avg_sqs, state_steps, strict=True
    ):
        weight, grad = widened([param, param_grad], exp_avg.dtype)
        state_step.add_(1)
        exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1, correction2 = _bias_corrections(state_step, beta1, beta2)
        update = exp_avg.div(correction1).div_(exp_avg_sq.div(correction2).sqrt_().add_(eps))
        if weight_decay != 0:
            update.add_(weight, alpha=weight_decay)
        if adapts:
            weight.addcmul_(update, trust_ratio(l2_norm(weight), l2_norm(update)), value=-lr)
        else:
            weight.add_(update, alpha=-lr)
        if weight is not param:
            param.copy_(weight)


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
) -> None:
    dtype = exp_avgs[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    torch._foreach_add_(state_steps, 1)
    torch._foreach_mul_(exp_avgs, beta1)
    torch._foreach_add_(exp_avgs, grads, alpha=1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, value=1 - beta2)
    corrections = [_bias_corrections(state_step, beta1, beta2) for state_step in state_steps]
    updates = torch._foreach_div(exp_avgs, [correction1 for correction1, _ in corrections])
    denominators = torch._foreach_div(exp_avg_sqs, [correction2 for _, correction2 in corrections])
    torch._foreach_sqrt_(denominators)
    torch._foreach_add_(denominators, eps)
    torch._foreach_div_(updates, denominators)
    if weight_decay != 0:
        torch._foreach_add_(updates, weights, alpha=weight_decay)
    if adapts:
        ratios = trust_ratio(l2_norms(weights), l2_norms(updates))
        torch._foreach_addcmul_(weights, updates, list(ratios.unbind()), value=-lr)
    else:
        torch._foreach_add_(weights, updates, alpha=-lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)


def _bias_corrections(state_step: Tensor, beta1: float, beta2: float) -> tuple[float, float]:
    """1 - beta1^t and 1 - beta2^t in double precision."""
    steps = float(state_step)
    return 1 - beta1**steps, 1 - beta2**steps

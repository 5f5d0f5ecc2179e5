"""What a step did to each tensor: its trust ratio, and how far it moved relative to its size. On request only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.forms import LambForm, LarsForm
from largebatch.optim.lamb import LAMB
from largebatch.optim.lamb_arithmetic import lamb_update
from largebatch.optim.lars import LARS
from largebatch.optim.state import wide_dtype
from largebatch.optim.trust_ratio import l2_norm, trust_ratio


@dataclass(frozen=True)
class TensorStep:
    """One step of one tensor.

    Attributes:
        update_to_weight: |change| / |w| with w before the step; infinite where w was 0.
        ratio: trust ratio; None where the tensor does not adapt, or the optimizer knows none.
        is_clipped: whether a bound of the formula set the ratio (`clip`, `trust_clip`, `norm_bounds`).
        is_fallback: whether it is 1 because a norm was 0.
    """

    update_to_weight: float
    ratio: float | None = None
    is_clipped: bool = False
    is_fallback: bool = False


def weights_of(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Copies of all parameters that have a gradient: take them before a step that `tensor_steps` should explain."""
    params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return {param: param.detach().clone() for param in params}


@torch.no_grad()
def tensor_steps(optimizer: Optimizer, before: Mapping[Tensor, Tensor]) -> dict[Tensor, TensorStep]:
    """What the latest step did to each tensor of `before`; gradients and state must still be those of the step.

    The ratios are computed again from the weights before the step, the gradient (LARS) or the moments after it (LAMB),
    by the formulas of the optimizer's slow path: the step itself records nothing. It costs about a step, and one
    wait for the device at the end.

    Args:
        optimizer: any; ratios are known of `LARS` and `LAMB`.
        before: what `weights_of` returned before the step.
    """
    rows = [
        (param, *_measures(optimizer, group, param, before[param].to(wide_dtype(param))))
        for group in optimizer.param_groups
        for param in group["params"]
        if param in before
    ]
    if not rows:
        return {}
    numbers = torch.stack([torch.stack([one.double() for one in measures]) for _, adapts, measures in rows]).tolist()
    return {param: _tensor_step(adapts, values) for (param, adapts, _), values in zip(rows, numbers, strict=True)}


def _tensor_step(adapts: bool, values: list[float]) -> TensorStep:
    update_to_weight, ratio, unbounded, is_fallback = values
    if not adapts:
        return TensorStep(update_to_weight)
    return TensorStep(update_to_weight, ratio, is_clipped=ratio != unbounded, is_fallback=bool(is_fallback))


def _measures(
    optimizer: Optimizer, group: Mapping[str, Any], param: Tensor, weight: Tensor
) -> tuple[bool, list[Tensor]]:
    """Whether the tensor adapts; |change| / |w|, the ratio, the ratio without bounds, whether a norm is 0."""
    weight_norm = l2_norm(weight)
    moved = l2_norm(param.detach().to(weight.dtype) - weight) / weight_norm
    if isinstance(optimizer, LARS):
        adapts, norms, options = _lars(group, param, weight)
    elif isinstance(optimizer, LAMB):
        adapts, norms, options = _lamb(group, optimizer.state[param], weight)
    else:
        return False, [moved] * 4
    free = {name: value for name, value in options.items() if name not in ("at_most", "norm_bounds")}
    ratio, unbounded = trust_ratio(*norms, **options), trust_ratio(*norms, **free)
    at_zero = (norms[0] == 0) | (norms[1] == 0)
    return adapts, [moved, ratio, unbounded, at_zero]


def _lars(group: Mapping[str, Any], param: Tensor, weight: Tensor) -> tuple[bool, list[Tensor], dict[str, Any]]:
    form, weight_decay = LarsForm.of(group), group["weight_decay"]
    assert param.grad is not None
    direction = param.grad.to(weight.dtype)
    if form.denominator == "joint":
        direction = direction.add(weight, alpha=weight_decay)
    options = form.ratio_options(
        lr=group["lr"], weight_decay=weight_decay, trust_coefficient=group["trust_coefficient"]
    )
    return _adapts(group, form), [l2_norm(weight), l2_norm(direction)], options


def _lamb(
    group: Mapping[str, Any], state: Mapping[str, Tensor], weight: Tensor
) -> tuple[bool, list[Tensor], dict[str, Any]]:
    form, weight_decay = LambForm.of(group), group["weight_decay"]
    if form.decay_placement == "outside":
        weight = weight.mul(1 - group["lr"] * weight_decay)
    update = lamb_update(
        weight,
        state["exp_avg"],
        state["exp_avg_sq"],
        state["step"],
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=weight_decay,
        form=form,
    )
    return _adapts(group, form), [l2_norm(weight), l2_norm(update)], form.ratio_options


def _adapts(group: Mapping[str, Any], form: LarsForm | LambForm) -> bool:
    return bool(group["adapts"] and (group["weight_decay"] != 0 or form.adapt_undecayed))

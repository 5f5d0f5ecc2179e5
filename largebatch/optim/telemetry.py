"""Trust ratio and relative update of each tensor in a step, on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.forms import LarsTerms
from largebatch.optim.lamb import lamb_update
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.state import wide_dtype
from largebatch.optim.trust_ratio import l2_norm

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


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
    """Copies of all parameters that have a gradient, to be taken before a step that `tensor_steps` explains."""
    params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return {param: param.detach().clone() for param in params}


@torch.no_grad()
def tensor_steps(optimizer: Optimizer, before: Mapping[Tensor, Tensor]) -> dict[Tensor, TensorStep]:
    """Explain the latest step for each tensor of `before`; gradients and state must still be those of the step.

    The step itself records nothing. Its ratios are computed again by the formulas of the plain loop: from the weights
    before the step and the gradient (LARS) or the moments after it (LAMB). Cost: about a step, and one wait for the
    device.

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


class StepTelemetry:
    """Explains the steps of an optimizer that are due, with a copy of the weights during these; see `tensor_steps`.

    A step that a loss scaler leaves out explains nothing.

    Args:
        optimizer: any.
        is_due: asked before each step.
    """

    def __init__(self, optimizer: Optimizer, is_due: Callable[[], bool]) -> None:
        self._is_due = is_due
        self._before: dict[Tensor, Tensor] = {}
        self._latest: dict[Tensor, TensorStep] = {}
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._copy_weights),
            optimizer.register_step_post_hook(self._explain),
        ]

    def take(self) -> dict[Tensor, TensorStep]:
        """The latest step that was explained since the last call, of each tensor with a gradient; or nothing."""
        latest, self._latest = self._latest, {}
        return latest

    def close(self) -> None:
        """Leave the optimizer alone."""
        for handle in self._handles:
            handle.remove()

    def _copy_weights(self, optimizer: Optimizer, *_: Any) -> None:
        if self._is_due():
            self._before = weights_of(optimizer)

    def _explain(self, optimizer: Optimizer, *_: Any) -> None:
        if self._before:
            self._latest = tensor_steps(optimizer, self._before)
            self._before = {}


def summary_of(steps: Sequence[TensorStep]) -> dict[str, float]:
    """Quantiles over layers, and the shares of ratios that are bounded or 1 for want of a norm.

    `trust_ratio/*` are over tensors that adapt, `update_to_weight/*` over all that were not zero.
    """
    # Of a tensor that was zero the relative change is infinite, which says nothing of the others.
    row = _quantiles("update_to_weight", [one for step in steps if math.isfinite(one := step.update_to_weight)])
    adapting = [step for step in steps if step.ratio is not None]
    if adapting:
        row |= _quantiles("trust_ratio", [step.ratio for step in adapting if step.ratio is not None])
        row["trust_ratio/clipped_share"] = sum(step.is_clipped for step in adapting) / len(adapting)
        row["trust_ratio/fallback_share"] = sum(step.is_fallback for step in adapting) / len(adapting)
    return row


def row_of_layers(steps: Mapping[Tensor, TensorStep], named: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """`update_to_weight/NAME` of each named parameter, and `trust_ratio/NAME` of those that adapt."""
    row: dict[str, float] = {}
    for name, tensor in named:
        if (step := steps.get(tensor)) is not None:
            row[f"update_to_weight/{name}"] = step.update_to_weight
            if step.ratio is not None:
                row[f"trust_ratio/{name}"] = step.ratio
    return row


def _quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.quantile(np.asarray(values), list(_QUANTILES.values()))
    return {f"{name}/{label}": float(value) for label, value in zip(_QUANTILES, found, strict=True)}


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
    terms = optimizer.terms(group) if isinstance(optimizer, LayerwiseOptimizer) else None
    if terms is None or terms.ratio is None:
        return False, [moved] * 4
    assert param.grad is not None
    if isinstance(terms, LarsTerms):
        grad = param.grad.to(weight.dtype)
        norms = weight_norm, l2_norm(grad.add(weight, alpha=terms.decay) if terms.is_joint else grad)
    else:
        state = optimizer.state[param]
        if terms.place == "outside":
            weight = weight.mul(1 - terms.decay)
        update = lamb_update(weight, state["exp_avg"], state["exp_avg_sq"], state["step"], terms)
        norms = l2_norm(weight), l2_norm(update)
    unbounded = replace(terms.ratio, norm_bounds=None, at_most=None)
    at_zero = (norms[0] == 0) | (norms[1] == 0)
    return True, [moved, terms.ratio.of_tensors(*norms), unbounded.of_tensors(*norms), at_zero]

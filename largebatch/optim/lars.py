"""LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from largebatch.optim.checks import check_hyperparameters, refuse_complex
from largebatch.optim.flat import check_paths, rows_of_one_dtype, split_off_fused
from largebatch.optim.fused_lars import fused_lars
from largebatch.optim.state import (
    load_unrounded,
    params_and_grads,
    same_kind,
    uses_foreach,
    wide_zeros,
    widened,
)
from largebatch.optim.trust_ratio import l2_norm, l2_norms, trust_ratio


class LARS(Optimizer):
    """Momentum SGD in which the step of every tensor is proportional to the norm of that tensor.

        ratio = trust_coefficient |w| / (|g| + weight_decay |w|)     1 where |w| = 0 or |g| = 0
        v     = momentum v + lr ratio (g + weight_decay w)           v = 0 at first
        w     = w - v

    for every tensor w with gradient g; |.| is the L2 norm of the whole tensor. Source: You, Gitman, Ginsburg 2017,
    "Large batch training of convolutional networks" (arXiv 1708.03888), Algorithm 1, which leaves norms of 0 open.
    A step without momentum is at most lr trust_coefficient |w| long. Where the ratio is 1, `lr` acts without the
    trust coefficient, which is a 1000 times larger rate.

    More than one algorithm has this name. It differs from

    - torch.optim.SGD: in the ratio, and in that the learning rate is inside v, so that a changing rate acts on new
      gradients only. SGD, timm and VISSL multiply v by the newest rate. Under a constant rate both are the same;
    - timm: there the denominator has an eps, the rate is outside v, and tensors with weight_decay=0 get no ratio;
    - optax: there the denominator is |g + weight_decay w|.

    Each parameter group has two independent flags: `weight_decay` (0: does not decay) and `adapts` (False: ratio 1,
    momentum SGD). No parameter is treated apart by its shape or name: `parameter_groups` makes the groups.

    `p.grad` is only read. Norms, state and arithmetic are float32, or the parameter's dtype where that is wider; a
    bfloat16 or float16 weight is rounded once per step.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0; a schedule writes `group["lr"]`.
        momentum: in [0, 1).
        weight_decay: >= 0, added to the gradient as weight_decay w (L2 regularisation), and part of the ratio.
        trust_coefficient: > 0, "eta" in the paper. With 1 the ratio itself is |w| / (|g| + weight_decay |w|).
        adapts: default of the group flag.
        foreach: True for one call per operation over many tensors, False for a plain loop; None takes the former unless
            a parameter is a tensor subclass. Temporary memory: 32 MiB, or the size of the largest tensor if more.
        fused: True for torch's fused SGD kernel with no temporary memory, False never. None takes it,
            if `foreach` is None too, for plain float32 and float64 tensors on a CPU whose gradient and state lie in
            memory in the same order, without gaps. True demands that of all.

    Raises:
        ValueError: if a number is out of range, here or in a group, a parameter is complex, or fused=True
            cannot be.
        RuntimeError: from `step`, if a gradient is sparse.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> w.grad = torch.tensor([0.0, 2.0])
    >>> LARS([w], lr=1.0, weight_decay=0.0, trust_coefficient=0.1).step()  # ratio 0.1 * 5 / 2
    >>> w.data
    tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust_coefficient: float = 0.001,
        adapts: bool = True,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
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
            lars(
                params,
                grads,
                [self._momentum_buffer(param) for param in params],
                foreach=group["foreach"],
                fused=group.get("fused"),
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                trust_coefficient=group["trust_coefficient"],
                adapts=group["adapts"],
            )
        return loss

    def _momentum_buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = wide_zeros(param)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def lars(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
) -> None:
    """One LARS step on lists of tensors: changes `params` and `momentum_buffers`, reads `grads`. See `LARS`."""
    options: dict[str, Any] = {
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "trust_coefficient": trust_coefficient,
        "adapts": adapts,
    }
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
) -> None:
    for param, param_grad, velocity in zip(params, grads, momentum_buffers, strict=True):
        weight, grad = widened([param, param_grad], velocity.dtype)
        direction = grad.add(weight, alpha=weight_decay) if weight_decay != 0 else grad
        velocity.mul_(momentum)
        if adapts:
            ratio = trust_ratio(
                l2_norm(weight), l2_norm(grad), coefficient=trust_coefficient, weight_decay=weight_decay
            )
            velocity.addcmul_(direction, ratio, value=lr)
        else:
            velocity.add_(direction, alpha=lr)
        weight.sub_(velocity)
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
) -> None:
    dtype = momentum_buffers[0].dtype
    weights, grads = widened(params, dtype), widened(grads, dtype)
    directions = torch._foreach_add(grads, weights, alpha=weight_decay) if weight_decay != 0 else grads
    torch._foreach_mul_(momentum_buffers, momentum)
    if adapts:
        ratios = trust_ratio(
            l2_norms(weights), l2_norms(grads), coefficient=trust_coefficient, weight_decay=weight_decay
        )
        torch._foreach_addcmul_(momentum_buffers, directions, list(ratios.unbind()), value=lr)
    else:
        torch._foreach_add_(momentum_buffers, directions, alpha=lr)
    torch._foreach_sub_(weights, momentum_buffers)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, weights)

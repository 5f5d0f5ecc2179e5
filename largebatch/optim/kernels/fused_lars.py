"""LARS at the speed of torch's fused SGD: two norms, then its kernel with the rate of the tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from largebatch.optim.forms import LarsForm
from largebatch.optim.kernels.flat import Row, norm, small_norms, small_then_large
from largebatch.optim.trust_ratio import ratio_of_numbers


def fused_lars(
    rows: Sequence[Row],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm,
) -> None:
    """One LARS step on rows of flat views (parameter, gradient, velocity); no temporary memory.

    Of the forms it has those that `form.is_fused` says.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 for the kernel, which reads w, g and v and writes w
    and v; where w and g fit in the processor's cache, the memory sees 20.
    """
    inner_lr, outer_lr = form.placed(lr)
    options = {"momentum": momentum, "weight_decay": weight_decay, "outer_lr": outer_lr}
    if not adapts:
        _advance(rows, rate=inner_lr, **options)
        return
    ratio_of: Callable[[float, float], float] = partial(
        ratio_of_numbers,
        **form.ratio_options(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient),
    )
    small, large = small_then_large(rows)
    if small:
        norms = zip(small_norms([row[0] for row in small]), small_norms([row[1] for row in small]), strict=True)
        for row, pair in zip(small, norms, strict=True):
            _advance([row], rate=inner_lr * ratio_of(*pair), **options)
    for row in large:
        _advance([row], rate=inner_lr * ratio_of(norm(row[0]), norm(row[1])), **options)


def _advance(rows: Sequence[Row], *, rate: float, momentum: float, weight_decay: float, outer_lr: float) -> None:
    """Set v = momentum v + rate (g + weight_decay w), then w = w - outer_lr v."""
    weights, grads, velocities = (list(column) for column in zip(*rows, strict=True))
    if not _kernel_knows(rate, weights[0].dtype):
        _advance_by_parts(
            weights, grads, velocities, rate=rate, momentum=momentum, weight_decay=weight_decay, outer_lr=outer_lr
        )
        return
    torch._fused_sgd_(
        weights,
        grads,
        velocities,
        weight_decay=weight_decay,
        # At momentum 0 the kernel would leave v as it was. This number is 0 in float32.
        momentum=momentum or sys.float_info.min,
        lr=outer_lr,
        dampening=1 - rate,  # the factor of the gradient is 1 - dampening
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _kernel_knows(rate: float, dtype: torch.dtype) -> bool:
    """Whether 1 - (1 - rate) is the rate to more than the digits of the dtype: a rate of 1e-9 has lost half of them."""
    return dtype == torch.float32 and abs(1 - (1 - rate) - rate) <= 2**-28 * rate


def _advance_by_parts(
    weights: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
    outer_lr: float,
) -> None:
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, grads, alpha=rate)
    if weight_decay != 0:
        torch._foreach_add_(velocities, weights, alpha=rate * weight_decay)
    torch._foreach_sub_(weights, velocities, alpha=outer_lr)

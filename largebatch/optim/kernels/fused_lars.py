"""LARS at the speed of torch's fused SGD: two norms, then its kernel with the rate of the tensor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from largebatch.optim.forms import LarsTerms
from largebatch.optim.kernels.flat import Row, norm, small_norms, small_then_large


def fused_lars(rows: Sequence[Row], terms: LarsTerms) -> None:
    """One LARS step on rows of flat views (parameter, gradient, velocity); no temporary memory.

    It has the forms that `LarsForm.is_fused` says.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 for the kernel, which reads w, g and v and writes w
    and v; where w and g fit in the processor's cache, the memory sees 20.
    """
    if terms.ratio is None:
        _advance(rows, terms.inner_lr, terms)
        return
    small, large = small_then_large(rows)
    if small:
        norms = zip(small_norms([row[0] for row in small]), small_norms([row[1] for row in small]), strict=True)
        for row, pair in zip(small, norms, strict=True):
            _advance([row], terms.inner_lr * terms.ratio.of_numbers(*pair), terms)
    for row in large:
        _advance([row], terms.inner_lr * terms.ratio.of_numbers(norm(row[0]), norm(row[1])), terms)


def _advance(rows: Sequence[Row], rate: float, terms: LarsTerms) -> None:
    """Set v = momentum v + rate (g + decay w), then w = w - outer_lr v."""
    weights, grads, velocities = (list(column) for column in zip(*rows, strict=True))
    if not _kernel_knows(rate, weights[0].dtype):
        torch._foreach_mul_(velocities, terms.momentum)
        torch._foreach_add_(velocities, grads, alpha=rate)
        if terms.decay != 0:
            torch._foreach_add_(velocities, weights, alpha=rate * terms.decay)
        torch._foreach_sub_(weights, velocities, alpha=terms.outer_lr)
        return
    torch._fused_sgd_(
        weights,
        grads,
        velocities,
        weight_decay=terms.decay,
        # At momentum 0 the kernel would leave v as it was. This number is 0 in float32.
        momentum=terms.momentum or sys.float_info.min,
        lr=terms.outer_lr,
        dampening=1 - rate,  # the factor of the gradient is 1 - dampening
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _kernel_knows(rate: float, dtype: torch.dtype) -> bool:
    """Whether 1 - (1 - rate) equals the rate within the precision of the dtype: a rate of 1e-9 loses half."""
    return dtype == torch.float32 and abs(1 - (1 - rate) - rate) <= 2**-28 * rate

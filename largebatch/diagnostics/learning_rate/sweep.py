"""The learning-rate range test in anybody's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from largebatch.diagnostics.learning_rate.range_curve import RangeCurve, RangeSettings, walk_rates
from largebatch.diagnostics.learning_rate.stability import momentum_of
from largebatch.gradient.snapshots import rolled_back
from largebatch.models.modes import train_mode
from largebatch.optim import keep_lr_ratios, set_lr


def lr_range_test(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    closure: Callable[[], Any],
    settings: RangeSettings = RangeSettings(),  # noqa: B008  frozen
) -> RangeCurve:
    """Train while the rate grows, tell what the loss did, and put everything back, bit for bit, on every way out.

    The test starts from the weights and the optimizer state as they are. With several ranks, call it on all of them
    with a closure that returns the loss of the whole global batch, so that all stop alike. Read the result with
    `read_curve` and, for plain SGD, `stability_limit`.

    Args:
        module: whose weights are trained.
        optimizer: over them; the rates of its groups keep their ratios to its default rate.
        closure: as for `optimizer.step`: takes the next batch, clears gradients, computes the loss and its gradient,
            and returns the loss, a tensor or a number. The batches that it takes are not given back.
        settings: rates, smoothing and when to stop.

    >>> weight = nn.Parameter(torch.tensor([3.0, 1.0]))
    >>> module, optimizer = nn.ParameterList([weight]), torch.optim.SGD([weight], lr=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (torch.tensor([4.0, 1.0]) * weight.square()).sum() / 2  # h_max = 4
    ...     loss.backward()
    ...     return loss
    >>> from largebatch.diagnostics import stability_limit
    >>> round(stability_limit(lr_range_test(module, optimizer, closure)), 2)
    0.5
    >>> weight.tolist(), optimizer.param_groups[0]["lr"]
    ([3.0, 1.0], 0.5)
    """

    def take_step(lr: float) -> float:
        set_lr(optimizer, lr)
        loss = closure()
        optimizer.step()
        return loss.item() if isinstance(loss, torch.Tensor) else float(loss)

    with rolled_back(module, optimizer):
        keep_lr_ratios(optimizer)
        train_mode(module)
        return walk_rates(take_step, settings, hold=momentum_of(optimizer) is not None)

"""Sharpness-aware minimisation in plain torch, from its definition: nothing of the package's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


def at_raised_weights(model: nn.Module, backward: Callable[[], T], *, rho: float, adaptive: bool) -> T:
    """Add to `.grad` the gradient at w + rho g / |g|, where g is that at w; with `adaptive` at w + rho w^2 g / |w g|.

    Buffers are those after the pass at w.

    Args:
        model: with the gradients so far.
        backward: forward and backward passes, the same each time.
        rho: length of the ascent.
        adaptive: whether the ascent of a weight counts by its size.

    Returns:
        What the pass at w returned.
    """
    weights = [one for one in model.parameters() if one.requires_grad]
    before = [one.grad for one in weights]
    _forget(weights)
    result = backward()
    buffers = [(one, one.clone()) for one in model.buffers()]
    with torch.no_grad():
        own = [one.clone() for one in weights]
        ascent = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights]
        sizes = [one.abs() if adaptive else torch.ones_like(one) for one in weights]
        norm = torch.cat([(size * grad).flatten() for size, grad in zip(sizes, ascent, strict=True)]).norm()
        for one, grad, size in zip(weights, ascent, sizes, strict=True):
            one.add_(rho * size.square() * grad / norm if norm > 0 else 0)
    _forget(weights)
    backward()
    with torch.no_grad():
        for kept, value in [*zip(weights, own, strict=True), *buffers]:
            kept.copy_(value)
    for one, grad_before in zip(weights, before, strict=True):
        if grad_before is not None:
            one.grad = grad_before if one.grad is None else grad_before + one.grad
    return result


def _forget(weights: list[nn.Parameter]) -> None:
    for one in weights:
        one.grad = None

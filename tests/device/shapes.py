"""Shapes of results of kernels that torch has for devices alone, without a description of what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _per_channel(inputs: Tensor, count: int) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(inputs.dtype, torch.float32)  # in which these kernels sum
    return tuple(inputs.new_empty(inputs.shape[1], dtype=dtype) for _ in range(count))


SHAPES: dict[str, Callable[..., Any]] = {
    "aten::_fused_sgd_": lambda *_, **__: None,  # written in place, as the next one
    "aten::_fused_adagrad_": lambda *_, **__: None,
    "aten::batch_norm_stats": lambda inputs, *_: _per_channel(inputs, 2),
    "aten::batch_norm_elemt": lambda inputs, *_: torch.empty_like(inputs),
    "aten::batch_norm_gather_stats_with_counts": lambda inputs, *_: _per_channel(inputs, 2),
    "aten::batch_norm_backward_reduce": lambda _, inputs, *__: _per_channel(inputs, 4),
    "aten::batch_norm_backward_elemt": lambda _, inputs, *__: torch.empty_like(inputs),
}

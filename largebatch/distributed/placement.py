"""Inputs and targets on the device and in the precision of a rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]


def placed(value: Inputs, device: torch.device, precision: str) -> Inputs:
    """A tensor or a dict of tensors on a device, in double precision under fp64."""
    if isinstance(value, Mapping):
        return {name: placed_tensor(part, device, precision) for name, part in value.items()}
    return placed_tensor(value, device, precision)


def placed_tensor(value: Tensor, device: torch.device, precision: str) -> Tensor:
    """As `placed`, for one tensor."""
    dtype = torch.float64 if precision == "fp64" and value.is_floating_point() else value.dtype
    return value.to(device, dtype, non_blocking=True)

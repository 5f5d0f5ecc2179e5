"""Inputs and targets on the device and in the precision of a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]


def placed(value: Inputs, place_tensor: Callable[[Tensor], Tensor]) -> Inputs:
    """A tensor or every tensor of a dict, as `place_tensor` of a job places one.

    It is the job's method that is asked, tensor by tensor: a job may place tensors in a way of its own.
    """
    if isinstance(value, Mapping):
        return {name: place_tensor(part) for name, part in value.items()}
    return place_tensor(value)


def placed_tensor(value: Tensor, device: torch.device, precision: str) -> Tensor:
    """A tensor on a device, in double precision under fp64."""
    dtype = torch.float64 if precision == "fp64" and value.is_floating_point() else value.dtype
    return value.to(device, dtype, non_blocking=True)

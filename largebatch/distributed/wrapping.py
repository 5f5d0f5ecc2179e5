"""A model in DistributedDataParallel, with gradients that are views of DDP's buckets from the beginning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:  # verbs without a job start without accelerate
    from accelerate import Accelerator


def wrap_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Move the model to the device, apply precision, and wrap it in DDP if there are ranks; then gradients are zero."""
    give_zeros(model.to(accelerator.device).parameters())
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers to forward_sync_buffers, which older releases and accelerate lack.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped = cast(nn.Module, accelerator.prepare_model(model))
    if wrapped is model:
        model.zero_grad()
    return wrapped


def give_zeros(parameters: Iterable[nn.Parameter]) -> None:
    """Make zeros, which share one number in memory, the gradients of all parameters that are trained.

    Nothing can be added to them. Whoever lays out DDP's buckets next makes views of the buckets, all zero, out of them:
    its constructor, or its first forward pass after the first gradient that it reduced.
    """
    for one in parameters:
        if one.requires_grad:
            one.grad = torch.zeros((), dtype=one.dtype, device=one.device).expand_as(one)

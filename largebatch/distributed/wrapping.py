"""A model in DistributedDataParallel, with gradients that are views of DDP's buckets from the beginning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import MethodType
from typing import Any, cast

import torch
from torch import nn

BUCKET_MB = 25.0  # DDP's own default


def wrap_model(accelerator: Any, model: nn.Module, bucket_mb: float, *, outputs_in_float32: bool = True) -> nn.Module:
    """Move the model to the device, apply precision, and wrap it in DDP if there are ranks.

    With DDP gradients are zeros in its buckets: micro-batches that add up there need no memory of their own.

    Args:
        accelerator: accelerate's, of the job.
        model: to be wrapped.
        bucket_mb: MiB of gradients that DDP sends at once.
        outputs_in_float32: whether outputs in bfloat16 and float16 are copied to float32.
    """
    give_zeros(model.to(accelerator.device).parameters())
    accelerator.ddp_handler.bucket_cap_mb = bucket_mb
    with warnings.catch_warnings():
        # torch 2.13 renames broadcast_buffers to forward_sync_buffers, which older releases and accelerate lack.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        wrapped = cast(nn.Module, accelerator.prepare_model(model))
    if wrapped is model:
        model.zero_grad()
    if not outputs_in_float32:
        _leave_outputs(model)
    return wrapped


def _leave_outputs(model: nn.Module) -> None:
    """Take back accelerate's float32 copy of all outputs under autocast.

    The logits of a language model are the largest tensor of a step.
    """
    copied = model.forward
    as_computed = getattr(getattr(copied, "__wrapped__", None), "model_forward", None)  # of ConvertOutputsToFp32
    if as_computed is not None:
        model.forward = MethodType(as_computed, model) if isinstance(copied, MethodType) else as_computed


def give_zeros(parameters: Iterable[nn.Parameter]) -> None:
    """Make zeros, which share one number in memory, the gradients of all parameters that are trained.

    Nothing can be added to them. Whoever lays out DDP's buckets next makes views of the buckets, all zero, out of them:
    its constructor, or its first forward pass after the first gradient that it reduced.
    """
    for one in parameters:
        if one.requires_grad:
            one.grad = torch.zeros((), dtype=one.dtype, device=one.device).expand_as(one)

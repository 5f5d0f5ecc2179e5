"""The number formats that the devices of a job compute in."""

from __future__ import annotations

import torch
import torch.distributed as dist

BF16_SINCE = (8, 0)  # compute capability of NVIDIA's first GPUs with bfloat16


def has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU whose hardware computes in bfloat16; torch also emulates it, slower than float32."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BF16_SINCE


def format_of_all_ranks(device: torch.device) -> str:
    """bf16 where the GPU of every rank computes in it, fp32 otherwise; the same on every rank, which all call it."""
    has_it = torch.tensor([has_bf16(device)], dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.all_reduce(has_it, dist.ReduceOp.MIN)
    return "bf16" if has_it.item() else "fp32"

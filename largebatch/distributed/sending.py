"""Numbers of the host on their way to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on `device`, without waiting for a GPU.

    A copy from pageable memory waits until the GPU has done everything before it: a whole step. From pinned memory it
    is only queued. Torch keeps the pinned memory until the copy has ended, so nobody else has to.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)

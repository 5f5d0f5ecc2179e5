"""The buffers of a model as they were: forward passes move some of them, and a step may have to be taken back."""

from __future__ import annotations

import torch
from torch import nn


def is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements share one place, as after `expand`: torch then refuses to write into it."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


class KeptBuffers:
    """Copies of all buffers of a module, at the moment at which it is made.

    Args:
        module: the unwrapped model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, None if buffer is None else buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the module the copies back; may be called again."""
        for owner, name, buffer, copy in self._kept:
            if buffer is not None and copy is not None and not is_expanded(buffer):
                buffer.copy_(copy)
            owner._buffers[name] = buffer  # some modules assign a new tensor instead of writing into theirs

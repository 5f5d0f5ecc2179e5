"""The device of a rank, and a decision that depends on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from largebatch.distributed.number_format import has_bf16

_COMPILED = ("LARS", "LAMB")  # ours


@dataclass(frozen=True)
class Device:
    """The device of a rank, as far as it decides how a run computes.

    Attributes:
        name: as its driver calls it.
        capability: compute capability of a GPU; None: there is no GPU.
        has_bf16: whether its hardware computes in bfloat16.
    """

    name: str = "CPU"
    capability: tuple[int, int] | None = None
    has_bf16: bool = False

    @classmethod
    def own(cls) -> Device:
        """The device that this process computes on: the GPU of its LOCAL_RANK, if there are GPUs."""
        if not torch.cuda.is_available():
            return cls()
        text = os.environ.get("LOCAL_RANK", "0")  # what is wrong with it is reported with the launcher
        device = torch.device("cuda", (int(text) if text.isdecimal() else 0) % torch.cuda.device_count())
        return cls(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), has_bf16(device))

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.capability is not None


@dataclass(frozen=True)
class Decision:
    """A value and where it comes from; `reason` is a clause for a person."""

    value: Any
    reason: str


def has_kernels(optimizer: dict[str, Any]) -> bool:
    """Whether the optimizer has compiled kernels."""
    room, _, name = str(optimizer.get("_target_")).rpartition(".")
    return room.startswith("largebatch.optim") and name in _COMPILED

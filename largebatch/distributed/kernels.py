"""Torch's own switches for the kernels of a GPU: set for a run, and put back after it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
NO_DETERMINISTIC_KERNEL = (
    "Use another operation, or leave out what compares bits (batch.reduction=ordered, observers.recompute, "
    "observers.ledger) and set precision.deterministic=false."
)
"""The remedy for what `lacks_deterministic_kernel` recognises."""
REPEATING_WORKSPACES = (":4096:8", ":16:8")
"""The values with which cuBLAS gives the same bits twice; torch refuses others beside deterministic algorithms."""


@dataclass(frozen=True)
class KernelSwitches:
    """Which kernels torch may take; None keeps its own setting.

    Attributes:
        tf32: whether float32 matrix products and convolutions on a GPU may use TF32.
        deterministic: whether an operation must give the same bits each time; one that cannot raises an error.
        cudnn_benchmark: whether cuDNN tries its kernels on each new shape and keeps the fastest.
    """

    tf32: bool | None = None
    deterministic: bool | None = None
    cudnn_benchmark: bool | None = None

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """Set the switches; put them back at the end, so that another run of the process finds them as they were."""
        if self.deterministic and torch.cuda.is_available():
            # Before the first matrix product, when cuBLAS reads it. It stays: a later run of the process may need it.
            os.environ.setdefault(WORKSPACE, REPEATING_WORKSPACES[0])
        with contextlib.ExitStack() as stack:
            for value, owner, name in (
                (self.tf32, torch.backends.cuda.matmul, "allow_tf32"),
                (self.tf32, torch.backends.cudnn, "allow_tf32"),
                (self.cudnn_benchmark, torch.backends.cudnn, "benchmark"),
            ):
                if value is not None:
                    stack.callback(setattr, owner, name, getattr(owner, name))
                    setattr(owner, name, value)
            if self.deterministic is not None:
                stack.callback(_deterministic_as_now())
                torch.use_deterministic_algorithms(self.deterministic)
            yield


def lacks_deterministic_kernel(error: BaseException) -> bool:
    """Whether torch has refused an operation that cannot give the same bits each time."""
    return isinstance(error, RuntimeError) and "does not have a deterministic implementation" in str(error)


def _deterministic_as_now() -> Callable[[], Any]:
    is_on, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    return lambda: torch.use_deterministic_algorithms(is_on, warn_only=only_warns)

"""Seconds of a call, on a device that works behind the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(call: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Mean seconds of `repeats` calls in a row, from an idle device to an idle device."""

    def settle() -> None:
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize(device)

    settle()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    settle()
    return (time.perf_counter() - started) / repeats

"""Puts the clocks of all ranks together."""

from __future__ import annotations

import torch

from largebatch.diagnostics.communication.costs import StepCommunication, communication_of_step
from largebatch.distributed.gather import gather_floats
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.reduction_clock import Timeline


def communication_of_ranks(runtime: Runtime, timeline: Timeline) -> StepCommunication:
    """What one step's reduction cost all ranks together; every rank calls it and gets the same.

    It costs an all-reduce of 16 bytes per rank and part of the gradient.
    """
    count = len(timeline.num_bytes)
    table = gather_floats(runtime, [*timeline.ready_s, *timeline.done_s, timeline.step_s])
    ready, done, step = zip(*((row[:count], row[count:-1], row[-1]) for row in table), strict=True)
    return communication_of_step(ready, done, step)


def meet(runtime: Runtime) -> None:
    """Wait until all ranks are here with nothing left to compute."""
    settle(runtime)
    runtime.barrier()
    settle(runtime)


def settle(runtime: Runtime) -> None:
    """Wait for what a GPU still has to do."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)

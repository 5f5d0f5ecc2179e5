"""Combine the clocks of all ranks."""

from __future__ import annotations

import torch

from largebatch.diagnostics.communication.costs import StepCommunication, communication_of_step
from largebatch.distributed.gather import gather_floats
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.reduction_clock import Timeline


def communication_of_ranks(runtime: Runtime, timeline: Timeline) -> StepCommunication:
    """Communication of one step over all ranks; every rank calls it and gets the same result.

    Cost: an all-reduce of 16 bytes per rank and part of the gradient.
    """
    count = len(timeline.num_bytes)
    table = gather_floats(runtime, [*timeline.ready_s, *timeline.done_s, timeline.step_s])
    ready, done, step = zip(*((row[:count], row[count:-1], row[-1]) for row in table), strict=True)
    return communication_of_step(ready, done, step)


def meet(runtime: Runtime) -> None:
    """Synchronise all ranks and their devices."""
    settle(runtime)
    runtime.barrier()
    settle(runtime)


def settle(runtime: Runtime) -> None:
    """Synchronise the GPU, if there is one."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)

"""Time a training step with and without its communication."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.diagnostics.communication.costs import StepCommunication
from largebatch.diagnostics.communication.rank_clocks import communication_of_ranks, meet, settle
from largebatch.distributed.gather import gather_floats
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.options import Gradient
from largebatch.gradient.reduction_clock import Timeline
from largebatch.gradient.reductions import no_sync
from largebatch.gradient.step import Measures, Step
from largebatch.models.modes import train_mode

_WARMUP = 3


@dataclass(frozen=True)
class StepTimes:
    """Pairs of steps of one global batch, one with the reduction of gradients and one without, [pairs].

    Attributes:
        with_s, without_s: seconds until the slowest rank finished.
        communication: communication of the steps in `with_s`.
        num_bytes: sizes of the gradient's parts, as DDP sends them.
        lead_s: from the moment at which each part is ready to the last gradient: median over pairs, on the rank where
            it is shortest.
    """

    with_s: tuple[float, ...]
    without_s: tuple[float, ...]
    communication: tuple[StepCommunication, ...]
    num_bytes: tuple[int, ...]
    lead_s: tuple[float, ...]


class _Again:
    """A loader that repeats one step."""

    def __init__(self, micro_batches: Sequence[Any]) -> None:
        self._micro_batches = micro_batches

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        return itertools.cycle(self._micro_batches)

    def replan(self, plan: BatchRamp) -> None:
        raise NotImplementedError("its micro-batches are there already")


def time_steps(
    runtime: Runtime,
    model: nn.Module,
    gradient: Gradient,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Any],
    *,
    plan: BatchPlan,
    pairs: int,
) -> StepTimes:
    """Repeat one step from the same weights; every rank calls it and gets the same result.

    A step is gradient and update, without data loading. The steps of a pair follow each other, alternately with and
    without the reduction first, so that a drift of the machine favours neither. Optimizer state and buffers advance.

    Args:
        runtime: the job.
        model: the result of `runtime.wrap`, not used elsewhere.
        gradient: gradient of the model.
        optimizer: optimizer of the model.
        micro_batches: this rank's part of the global batch.
        plan: plan of the global batch.
        pairs: number of measured pairs, after some for warmup.
    """
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    train_mode(runtime.unwrap(model))
    taken = Step(number=1, samples_seen=0, plan=plan, lr=0.0, random_key=0)
    gradient.batches.begin(0, 1, loader=_Again(micro_batches))

    def step(*, reduces: bool) -> tuple[float, Any]:
        meet(runtime)
        started = time.perf_counter()
        optimizer.zero_grad()
        with contextlib.nullcontext() if reduces else no_sync(model):
            gradient(replace(taken, measures=Measures.COMMUNICATION if reduces else Measures.NONE))
        runtime.step(optimizer)
        settle(runtime)
        seconds = time.perf_counter() - started
        timeline = gradient.clock.timeline()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(value)
        return seconds, timeline

    own, timelines = [], []
    for number in range(_WARMUP + pairs):
        order = (True, False) if number % 2 else (False, True)
        found = {reduces: step(reduces=reduces) for reduces in order}
        if number >= _WARMUP:
            own += [found[True][0], found[False][0]]
            timelines.append(found[True][1])
    slowest = [max(column) for column in zip(*gather_floats(runtime, own), strict=True)]
    return StepTimes(
        tuple(slowest[0::2]),
        tuple(slowest[1::2]),
        tuple(communication_of_ranks(runtime, timeline) for timeline in timelines),
        timelines[-1].num_bytes,
        tuple(min(column) for column in zip(*gather_floats(runtime, _leads(timelines)), strict=True)),
    )


def _leads(timelines: Sequence[Timeline]) -> list[float]:
    """See `StepTimes.lead_s`, on this rank."""
    ready = zip(*(timeline.ready_s for timeline in timelines), strict=True)
    last = [timeline.ready_s[-1] for timeline in timelines]
    return [statistics.median(end - moment for moment, end in zip(moments, last, strict=True)) for moments in ready]

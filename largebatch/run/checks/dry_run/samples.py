"""Which micro-batches of a run are tried, and their samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.data import Augmentation, MicroBatchData
from largebatch.data.fetching import BatchSource
from largebatch.data.micro_batch import Request
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward
from largebatch.gradient.choices import Ability
from largebatch.losses import Loss
from largebatch.models.modes import evaluating
from largebatch.run.config.combinations import choices_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers, solve_plan

MOST_LOADED = 32  # samples; a larger micro-batch repeats them, so that a dry run reads few files
# Floating-point operations of a forward and a backward pass: some seconds of a core.
_MOST_WORK = 1e11
_PASSES = 3  # a backward pass takes two forward ones


@dataclass(frozen=True)
class TriedBatch:
    """A micro-batch as it is tried.

    Attributes:
        inputs: [n, ...], or a dict of such. targets: [n, ...]. Of fewer samples than `size`, these are repeated.
        size: samples that the model gets, n.
        planned: samples that the micro-batch of the run has: more than `size` where that would take too long.
        loaded: as the loader gave it.
    """

    inputs: Inputs
    targets: Tensor
    size: int
    planned: int
    loaded: MicroBatchData

    @property
    def ids(self) -> list[int]:
        """Sample id of each of `inputs`."""
        ids = self.loaded.ids.tolist()
        return [ids[place % len(ids)] for place in range(self.size)]


def tried_batches(
    config: TrainConfig, numbers: RunNumbers, dataset: Any, augment: Augmentation | None, model: nn.Module, loss: Loss
) -> Iterator[TriedBatch]:
    """The first of the smallest and the first of the largest micro-batches of all ranks and stages, as loaded in a run.

    What depends on the size is told by the two: whether one sample has statistics, what divides it. Where the largest
    would take long, two samples stand for it.
    """
    # One worker shows whether items load. A set in memory refuses workers: it should name their real number.
    num_workers = config.data.num_workers
    source = BatchSource(
        dataset,
        augment=augment,
        num_workers=num_workers if hasattr(dataset, "fetch") else min(num_workers, 1),
        pin_memory=False,
        seed=config.seed,
        stream="item",
        timeout_s=config.data.timeout_s,
        skips=config.data.skips,
    )
    sizes = _extremes(numbers)
    order = SampleOrder(len(dataset), config.seed)
    requests = (_request(order, position, min(size, MOST_LOADED), index) for size, position, index in sizes)
    # These are never taken over one micro-batch alone.
    least = 2 if any(Ability.OWN_GRADIENTS in one.lacks for one in choices_of(config, loss)) else 1
    done = None
    for (size, _, _), loaded in zip(sizes, source.load(requests), strict=True):
        planned = max(size, least)
        first = rows_of(loaded.inputs, torch.zeros(1, dtype=torch.int64))
        tried = planned if planned <= 2 or is_affordable(model, first, planned) else 2
        if tried == done:
            continue
        done = tried
        yield repeated(TriedBatch(loaded.inputs, loaded.targets, tried, planned, loaded), tried)


def repeated(batch: TriedBatch, size: int) -> TriedBatch:
    """The samples that were loaded, as often as it takes to have `size` of them."""
    rows = torch.arange(size) % len(batch.loaded.targets)
    return TriedBatch(rows_of(batch.loaded.inputs, rows), batch.loaded.targets[rows], size, batch.planned, batch.loaded)


def in_pairs(config: TrainConfig, numbers: RunNumbers) -> str:
    """What to do where a micro-batch of one sample cannot be computed: the nearest batches without one."""
    plan = next(plan for plan in numbers.ramp.plans if min(plan.micro_batch_sizes) == 1)
    total, world_size = plan.global_batch_size, plan.world_size
    reach = max(config.batch.micro or 0, config.batch.max_micro or 0, world_size) + 1
    near = [
        size
        for size in range(total + reach, max(total - reach, 0), -1)
        if _is_without_singles(config, size, world_size)
    ]
    rule = "Two samples pass, one alone does not: batch statistics, for one, need two."
    if not near:
        return f"{rule} Raise batch.micro or batch.max_micro, or take a norm that looks at one sample at a time."
    shown = ", ".join(map(str, sorted(sorted(near, key=lambda size: abs(size - total))[:2])))
    key = "batch.total" if plan is numbers.ramp.plans[0] else "the ramp's batch"
    return f"{rule} {key}={total} leaves such a micro-batch; nearest that do not: {shown}."


def _is_without_singles(config: TrainConfig, total: int, world_size: int) -> bool:
    try:
        return min(solve_plan(config, total, world_size).micro_batch_sizes) > 1
    except ValueError:
        return False


def _extremes(numbers: RunNumbers) -> list[tuple[int, int, int]]:
    """(size, position of its first sample in the run, index) of the first smallest and the first largest one."""
    found: dict[int, tuple[int, int, int]] = {}
    for position, plan, _ in numbers.ramp.stages(numbers.schedule.total_samples):
        offset = 0
        for index, size in enumerate(plan.micro_batch_sizes):
            found.setdefault(size, (size, position + offset, index))
            offset += size
    return [found[size] for size in sorted({min(found), max(found)})]


def _request(order: SampleOrder, position: int, count: int, index: int) -> Request:
    positions = np.arange(position, position + count)
    return Request(
        ids=order.ids_at(positions), epochs=positions // order.num_samples, index=index, samples_seen=position
    )


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """A copy of some samples."""
    return {name: part[rows] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def is_affordable(model: nn.Module, sample: Inputs, size: int) -> bool:
    """Whether a micro-batch of `size` takes a few seconds at most, by a count of operations: the same on every rank.

    Args:
        model: in the precision of `sample`.
        sample: inputs of one sample.
        size: samples.
    """
    parts = sample.values() if isinstance(sample, dict) else [sample]
    # Each weight meets each number at most once in usual layers: where that is little nothing needs to be counted.
    most = 2 * sum(one.numel() for one in model.parameters()) * max(part.numel() for part in parts)
    if _PASSES * size * most <= _MOST_WORK:
        return True
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a quarter of a second

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), evaluating(model), counter:
            forward(model, sample)
    except Exception:  # the dry run itself will tell
        return False
    return _PASSES * size * counter.get_total_flops() <= _MOST_WORK

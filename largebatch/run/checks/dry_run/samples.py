"""The micro-batches that a dry run tries, and their samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.batch.orders import Order
from largebatch.data import Augmentation, MicroBatchData
from largebatch.data.fetching import BatchSource
from largebatch.data.micro_batch import Request, with_partners
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward
from largebatch.gradient.choices import Ability
from largebatch.losses import Loss
from largebatch.models.modes import evaluating
from largebatch.run.config.combinations import choices_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers, solve_plan
from largebatch.run.sample_order import sample_order

MOST_LOADED = 32  # samples; a larger micro-batch repeats them, so that a dry run reads few files
# Most floating-point operations of a forward and a backward pass: some seconds of one core.
_MOST_WORK = 1e11
_PASSES = 3  # a backward pass takes two forward ones


@dataclass(frozen=True)
class TriedBatch:
    """A micro-batch of a dry run.

    Attributes:
        inputs: [n, ...], or a dict of tensors of this shape; fewer loaded samples than n are repeated.
        targets: [n, ...], likewise.
        size: samples that the model gets, n.
        planned: samples of the run's own micro-batch; more than `size` if trying them would take too long.
        loaded: the loader's batch.
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
    """The first smallest and the first largest micro-batch over all ranks and stages, loaded as in a run.

    The two show every dependence on the size: whether one sample has batch statistics, and divisibility. If the
    largest would take too long, two samples replace it.
    """
    # One worker shows whether items load. A set in memory refuses workers: its error should name the real number.
    num_workers = config.data.num_workers
    source = BatchSource(
        dataset,
        augment=augment,
        num_workers=num_workers if hasattr(dataset, "fetch") else min(num_workers, 1),
        prefetch=config.data.prefetch or 0,
        seed=config.seed,
        stream="item",
        timeout_s=config.data.timeout_s,
        skips=config.data.skips,
    )
    sizes = _extremes(numbers)
    order = sample_order(config, dataset)
    mixes = config.data.augment.mixes
    requests = (_request(order, position, min(size, MOST_LOADED), index, mixes) for size, position, index in sizes)
    # These are never computed on one micro-batch alone.
    least = 2 if any(Ability.OWN_GRADIENTS in one.lacks for one in choices_of(config, loss)) else 1
    done = None
    for (size, _, _), loaded in zip(sizes, source.load(requests), strict=True):
        planned = max(size, least)
        first = as_given(rows_of(loaded.inputs, torch.zeros(1, dtype=torch.int64)), model, config.precision.compute)
        tried = planned if planned <= 2 or is_affordable(model, first, planned) else 2
        if tried == done:
            continue
        done = tried
        yield repeated(TriedBatch(loaded.inputs, loaded.targets, tried, planned, loaded), tried)


def repeated(batch: TriedBatch, size: int) -> TriedBatch:
    """The loaded samples, repeated up to `size`."""
    rows = torch.arange(size) % len(batch.loaded.targets)
    return TriedBatch(rows_of(batch.loaded.inputs, rows), batch.loaded.targets[rows], size, batch.planned, batch.loaded)


def in_pairs(config: TrainConfig, numbers: RunNumbers) -> str:
    """The remedy if a micro-batch of one sample fails: the nearest global batches without one."""
    plan = next(plan for plan in numbers.ramp.plans if min(plan.micro_batch_sizes) == 1)
    total, world_size = plan.global_batch_size, plan.world_size
    reach = max(config.batch.micro or 0, config.batch.max_micro or 0, world_size) + 1
    near = [
        size
        for size in range(total + reach, max(total - reach, 0), -1)
        if _is_without_singles(config, size, world_size)
    ]
    rule = "Two samples pass, one alone does not: batch statistics, for example, need two."
    if not near:
        return f"{rule} Raise batch.micro or batch.max_micro, or use a norm over single samples."
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
    stages = [(position, plan) for position, plan, _ in numbers.ramp.stages(numbers.schedule.total_samples)]
    for position, plan in [*stages, *((0, plan) for plan in numbers.ramp.plans_of_choice)]:
        offset = 0
        for index, size in enumerate(plan.micro_batch_sizes):
            found.setdefault(size, (size, position + offset, index))
            offset += size
    return [found[size] for size in sorted({min(found), max(found)})]


def _request(order: Order, position: int, count: int, index: int, mixes: bool) -> Request:
    positions, partners = np.arange(position, position + count), None
    if mixes:
        positions, partners = with_partners(positions)
    return Request(order.ids_at(positions), order.draws_at(positions), index, position, partners)


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """A copy of the samples at `rows`."""
    return {name: part[rows] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def device_of(model: nn.Module) -> torch.device:
    """Where the model lies, and is tried."""
    return next((one.device for one in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def as_given(value: Any, model: nn.Module, precision: str) -> Any:
    """A tensor or dict of tensors as the run gives it to model and loss: on their device, under fp64 in float64."""
    if isinstance(value, dict):
        return {name: as_given(part, model, precision) for name, part in value.items()}
    return value.to(device_of(model), torch.float64 if precision == "fp64" and value.is_floating_point() else None)


def is_affordable(model: nn.Module, sample: Inputs, size: int) -> bool:
    """Whether a micro-batch of `size` takes at most a few seconds of one core, by its operation count.

    Args:
        model: in the precision of `sample`.
        sample: inputs of one sample.
        size: samples.
    """
    parts = sample.values() if isinstance(sample, dict) else [sample]
    # An upper bound for usual layers, which multiply each weight with each input number at most once.
    most = 2 * sum(one.numel() for one in model.parameters()) * max(part.numel() for part in parts)
    if _PASSES * size * most <= _MOST_WORK:
        return True
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a quarter of a second

    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), evaluating(model), counter:
            forward(model, sample)
    except Exception:  # the dry run itself reports it
        return False
    return _PASSES * size * counter.get_total_flops() <= _MOST_WORK

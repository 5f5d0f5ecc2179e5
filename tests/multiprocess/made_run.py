"""The run of a test, made in one place from what the test is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_stream import Loader
from largebatch.losses import units_are_fixed
from largebatch.training.loop import Run


def made_run(
    runtime: Runtime,
    model: nn.Module,
    loss: Any,
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan | BatchRamp,
    data: Any,
    lr_at: Callable[[int], float],
    num_steps: int,
    *,
    seed: int = 0,
    order: Any = None,
    augment: Any = None,
    loader: Loader | None = None,
    **options: Any,
) -> Run:
    """A run of a model that is not wrapped yet.

    Args:
        runtime, loss, optimizer, plan, lr_at, num_steps, options: as of `Run`.
        model: to be wrapped.
        data: the training set, read in the order of `seed`, or in `order`, by a loader of this process.
        seed: of the run.
        order: of the samples. augment: of the loader.
        loader: in place of that one.
    """
    if loader is None:
        order = SampleOrder(len(data), seed) if order is None else order
        loader = MicroBatchLoader(data, order, plan, runtime.rank, augment=augment)
    units = units_are_fixed(loss, data)
    model = runtime.wrap(model)
    return Run(runtime, model, loss, optimizer, plan, loader, lr_at, num_steps, fixed_units=units, seed=seed, **options)

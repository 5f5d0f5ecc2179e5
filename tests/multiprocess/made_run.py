"""The run of a test, made in one place from what the test is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_stream import Loader
from largebatch.gradient.step import Measures, Step
from largebatch.losses import units_are_fixed, widens_outputs
from largebatch.training.assembly import make_run
from largebatch.training.loop import Observer, Run


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
    log_every: int = 10,
    norms_every: int | None = None,
    observers: Sequence[Observer] = (),
    **options: Any,
) -> Run:
    """A run of a model that is not wrapped yet.

    Args:
        runtime, loss, optimizer, plan, lr_at, num_steps, options: as of `make_run`.
        model: to be wrapped.
        data: the training set, read in the order of `seed`, or in `order`, by a loader of this process.
        seed: of the run.
        order: of the samples. augment: of the loader.
        loader: in place of that one.
        log_every: steps between those that measure what a row of metrics has; the last one does, too.
        norms_every: steps between measurements of the norms of micro-batch gradients.
        observers: of the run.
    """
    if loader is None:
        order = SampleOrder(len(data), seed) if order is None else order
        loader = MicroBatchLoader(data, order, plan, runtime.rank, augment=augment)
    units = units_are_fixed(loss, data)
    model = runtime.wrap(model, outputs_in_float32=not widens_outputs(loss))
    options = {"fixed_units": units, "seed": seed, "agree_every": log_every, **options}
    watching = [*observers, Rows(log_every, norms_every)]
    return make_run(runtime, model, loss, optimizer, plan, loader, lr_at, num_steps, observers=watching, **options)


@dataclass
class Rows(Observer):
    """Has measured what a row of metrics has, and norms, every so many steps."""

    every: int
    norms_every: int | None

    def asks(self, step: Step) -> Measures:
        """See above."""
        row = Measures.LOSS | Measures.GRAD_NORM | Measures.COMMUNICATION
        norms = Measures.NORMS if step.is_due(self.norms_every) else Measures.NONE
        return norms | (row if step.has_row(self.every) else Measures.NONE)

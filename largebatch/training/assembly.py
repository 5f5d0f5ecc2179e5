"""A `Run` from plain arguments, for verbs and for programs of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import choices
from largebatch.gradient.batch_stream import BatchStream, Loader
from largebatch.gradient.options import GradientOptions, choose_gradient
from largebatch.gradient.step import Measures
from largebatch.losses import Loss
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_sums import Agreement
from largebatch.training.steps import Steps
from largebatch.training.update import Guarded, Plain, Update


def make_run(
    runtime: Runtime,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    plan: BatchPlan | BatchRamp,
    loader: Loader,
    lr_at: Callable[[int], float],
    num_steps: int,
    *,
    seed: int = 0,
    clip_norm: float | None = None,
    scaled: ScaledGroups | None = None,
    guard: Guard | None = None,
    roll_back: Callable[[Any], bool] = lambda run: False,
    agree_every: int = 10,
    observers: Sequence[Observer] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    save_requested: Callable[[], bool] = lambda: False,
    rows: RowLog | None = None,
    **how: Any,
) -> Run:
    """The run of a model on the ranks of `runtime`.

    Args:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        loss: sums per sample; may be a `CoupledLoss`.
        optimizer: of the model's parameters.
        plan: how a global batch is cut and shared, or a ramp of such plans.
        loader: of this rank's micro-batches.
        lr_at: samples seen -> learning rate of the step that starts there.
        num_steps: optimizer steps of the whole run.
        seed: of the run; draws inside the model are keyed by (seed, samples seen, micro-batch).
        clip_norm: largest gradient norm; None: no clipping.
        scaled: gives the groups of the optimizer, and `clip_norm`, what follows the batch; None: only the rate does.
        guard: judges every step before its update; None: a loss that is not a number ends the run.
        roll_back: puts the newest checkpoint into the run on every rank; returns whether there was one.
        agree_every: steps between the sums by which ranks learn of a stop, or of a loss that is not a number, where
            steps are short.
        observers: called in their order.
        stop_requested: whether this rank was asked to stop.
        save_requested: whether it asks for a checkpoint.
        rows: for what observers write with `run.log`.
        how: fields of `GradientOptions`.

    Raises:
        ValueError: see `choose_gradient`.
    """
    options = GradientOptions(**how)
    if guard is not None and guard.acts:
        choices.require_no_conflict([choices.guard(guard.policy), *options.choices(loss, precision=runtime.precision)])
    batches = BatchStream(loader, BatchRamp.of(plan), runtime.rank, shrinks=options.halves_micro_batches)
    gradient = choose_gradient(runtime, model, loss, batches, options)
    refused = options.refused(loss, precision=runtime.precision)
    update: Update = Plain() if guard is None else Guarded(guard, runtime.unwrap(model), roll_back)
    always = update.measures | (Measures.NONE if clip_norm is None else Measures.GRAD_NORM)
    return Run(
        runtime,
        model,
        optimizer,
        Steps(batches, lr_at, num_steps, seed=seed, always=always, refused=refused),
        gradient,
        update,
        Agreement(runtime, every=agree_every, guard=guard, save_requested=save_requested),
        clip_norm,
        scaled,
        observers,
        stop_requested,
        rows,
    )

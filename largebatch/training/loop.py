"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.random_keys import stream_key
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_stream import BatchStream, Loader
from largebatch.gradient.global_gradient import BatchResult, GlobalGradient
from largebatch.gradient.reduction_clock import Compression
from largebatch.losses import Loss
from largebatch.models.modes import train_mode
from largebatch.optim import set_lr
from largebatch.training.agreement import Agreement
from largebatch.training.guard import Guard, Judgement
from largebatch.training.step_report import Progress, StepReport


class Observer(Protocol):
    """Watches a run. Called in a fixed order on every rank; without any, the weights come out bit-identical."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def after_step(self, run: Run, report: StepReport) -> None:
        """After every optimizer step. Whether it makes a collective depends on the step and the config alone."""

    def on_end(self, run: Run, status: str) -> None:
        """After the last step; `status` as `train` returns it."""


@dataclass
class Run:
    """Everything that the loop needs.

    Attributes:
        runtime: the job. model: as `runtime.wrap` returned it. loss: sums per sample; may be a `CoupledLoss`.
        plan: how a global batch is cut and shared, or a ramp of such plans.
        lr_at: samples seen -> learning rate of the step that starts there.
        num_steps: optimizer steps of the whole run.
        fixed_units: whether all samples have the same number of units; see `units_are_fixed`. None: as the loss says.
        seed: of the run; draws inside the model are keyed by (seed, samples seen, micro-batch).
        clip_norm: largest gradient norm; None: no clipping.
        ordered: sums gradients in one order on any number of ranks, see `OrderedReduction`; for audits.
        exact_batch_norm: takes batch norm over the whole global batch, see `ExactBatchNorm`.
        compression: of gradients between ranks, see `ReductionClock`.
        log_every: steps between detailed reports (gradient norm, exposed communication).
        needs_every_loss: whether the loss is summed over ranks in every step, short or long.
        norms_every: steps between measurements of the norms of micro-batch gradients; None: none.
        communication_every: steps between timelines of the gradient's reduction; None: none.
        recompute_every: steps between ones whose gradient is computed twice, see `Recomputation`; None: none.
        guard: judges every step before its update; None: a loss that is not a number ends the run.
        survives_shortage: of memory: the step is taken again in smaller micro-batches, see `accumulate_if_it_fits`.
        step_buffers: names of buffers that move once per step, see `StepBuffers`.
        skips_parameters: whether passes may leave parameters out, see `SkippedParameters`.
        stop_requested: whether this rank was asked to stop. save_requested: whether it asks for a checkpoint.
    """

    runtime: Runtime
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    plan: BatchPlan | BatchRamp
    loader: Loader
    lr_at: Callable[[int], float]
    num_steps: int
    fixed_units: bool | None = None
    seed: int = 0
    clip_norm: float | None = None
    ordered: bool = False
    exact_batch_norm: bool = False
    compression: Compression = "none"
    log_every: int = 10
    needs_every_loss: bool = False
    norms_every: int | None = None
    communication_every: int | None = None
    recompute_every: int | None = None
    guard: Guard | None = None
    survives_shortage: bool = False
    step_buffers: Sequence[str] = ()
    skips_parameters: bool = False
    observers: Sequence[Observer] = ()
    stop_requested: Callable[[], bool] = lambda: False
    save_requested: Callable[[], bool] = lambda: False
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.gradient = GlobalGradient(
            self.runtime,
            self.model,
            self.loss,
            fixed_units=self.loss.fixed_units if self.fixed_units is None else self.fixed_units,
            ordered=self.ordered,
            exact_batch_norm=self.exact_batch_norm,
            compression=self.compression,
            survives_shortage=self.survives_shortage,
            recomputes=self.recompute_every is not None,
            step_buffers=self.step_buffers,
            skips_parameters=self.skips_parameters,
        )
        module = self.module if self.survives_shortage else None
        self.batches = BatchStream(self.gradient, self.loader, BatchRamp.of(self.plan), module=module)
        self.agrees_every_step = True
        self.stops_here = False  # an observer that was asked to stop says so, on every rank alike
        self.saves_here = False  # a rank asked for a checkpoint: all of them agree on the step after which it is saved
        self.counted_step, self.counted_samples = self.progress.step, self.progress.samples_seen
        self.last_agreement = (self.progress.step, self.progress.train_s)

    @property
    def skips_bad_steps(self) -> bool:
        """Whether a loss that is not a number costs its step alone."""
        return self.guard is not None and self.guard.acts

    def is_logged(self, step: int) -> bool:
        """Whether the step that makes `step` steps done is reported in detail. Ask for `counted_step`.

        What the ranks do together follows the steps that this process has counted since they last agreed on one: were
        `progress` wrong on one rank, its collectives would meet other ones of other ranks before anybody could tell.
        """
        return step % self.log_every == 0 or step == self.num_steps

    @property
    def module(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return self.runtime.unwrap(self.model)


def train(run: Run) -> str:
    """Train until the planned number of steps is done, a stop is asked for, or the loss is not a number.

    A stop that is asked for inside a step is agreed on one step later, one inside an observer ends the run there.

    Returns:
        "finished", "stopped" or "diverged", the same on every rank.
    """
    for observer in run.observers:
        observer.on_start(run)
    run.batches.begin(run.progress.samples_seen, run.num_steps - run.progress.step)
    train_mode(run.module)
    run.last_agreement = (run.progress.step, run.progress.train_s)
    run.counted_step, run.counted_samples = run.progress.step, run.progress.samples_seen
    status, previous = "running", None
    while run.counted_step < run.num_steps and status == "running" and not run.stops_here:
        started = time.perf_counter()
        report = take_step(run)
        run.saves_here = previous is not None and previous.asks_to_save
        if previous is not None:
            # One step late: by now the sums have arrived, so nobody waits for the network.
            status = previous.verdict(takes_any_loss=run.skips_bad_steps)
            run.agrees_every_step = run.needs_every_loss or previous.steps_are_slow
        previous = report.agreement
        run.progress.train_s += time.perf_counter() - started
        if run.guard is not None and run.guard.gives_up:
            status = "diverged"
        for observer in run.observers:
            observer.after_step(run, report)
    if previous is not None and status == "running":
        status = previous.verdict(is_last=run.progress.step == run.num_steps, takes_any_loss=run.skips_bad_steps)
    if status == "running":
        status = "stopped" if run.stops_here else "finished"
    for observer in run.observers:
        observer.on_end(run, status)
    run.gradient.statistics.merge()  # the model that is left is the run's, not this rank's part of it
    return "stopped" if run.stops_here and status == "finished" else status


def take_step(run: Run) -> StepReport:
    """Consume one global batch: gradient, learning rate, update."""
    progress, runtime, position = run.progress, run.runtime, run.counted_samples
    run.counted_step += 1
    run.counted_samples += run.batches.ramp.at(position).global_batch_size
    is_detailed, measures_timeline = run.is_logged(run.counted_step), _is_due(run, run.communication_every)
    lr = run.lr_at(progress.samples_seen)
    set_lr(run.optimizer, lr)

    run.optimizer.zero_grad()
    if run.guard is not None:
        run.guard.begin_step(run.module)
    plan, batch = run.batches.next_gradient(
        position,
        random_key=stream_key(run.seed, "forward", progress.samples_seen),
        measures_communication=is_detailed or measures_timeline,
        measures_norms=_is_due(run, run.norms_every),
        recomputed_step=run.counted_step if _is_due(run, run.recompute_every) else None,
    )
    needs_norm = is_detailed or run.clip_norm is not None or run.guard is not None
    grad_norm = runtime.grad_norm(run.optimizer, run.clip_norm) if needs_norm else None

    progress.step += 1
    progress.samples_seen += plan.global_batch_size
    agreement, judgement = _update(run, batch, grad_norm, agrees=is_detailed or run.agrees_every_step)
    is_skipped = judgement is not None and judgement.skips
    return StepReport(
        step=progress.step,
        samples_seen=progress.samples_seen,
        plan=plan,
        lr=lr,
        num_units=batch.num_units,
        agreement=agreement,
        grad_norm=grad_norm,
        data_s=batch.data_s,
        communication_s=batch.communication_s,
        own_s=run.gradient.own_s(),
        norms=None if is_skipped else batch.norms,
        timeline=run.gradient.timeline() if measures_timeline else None,
        judgement=judgement,
    )


def _update(
    run: Run, batch: BatchResult, grad_norm: torch.Tensor | None, *, agrees: bool
) -> tuple[Agreement | None, Judgement | None]:
    """Step the optimizer. A guard decides before, by numbers of all ranks: so the host waits for them in every step."""
    runtime, guard = run.runtime, run.guard
    if guard is None:
        runtime.step(run.optimizer)
        return _agree(run, batch.loss_sum) if agrees else None, None
    agreement = _agree(run, batch.loss_sum, grad_norm)
    mean_loss = agreement.loss_sum / (batch.num_units or 1)
    judgement = guard.judge(mean_loss, agreement.grad_norm, scales_loss=runtime.precision == "fp16")
    runtime.step(run.optimizer, leaves_out=judgement.skips)
    if judgement.skips:
        run.optimizer.zero_grad()
        judgement = guard.undo(judgement)
    return agreement, judgement


def _is_due(run: Run, every: int | None) -> bool:
    return every is not None and run.counted_step % every == 0


def _agree(run: Run, loss_sum: torch.Tensor, grad_norm: torch.Tensor | None = None) -> Agreement:
    """Sum over ranks what they must agree on, with the time per step since they last did: at first unknown, so long."""
    progress, (last_step, last_s) = run.progress, run.last_agreement
    finished = progress.step - 1 - last_step
    step_s = (progress.train_s - last_s) / finished if finished > 0 else math.inf
    run.last_agreement = (progress.step - 1, progress.train_s)
    return Agreement.start(
        run.runtime,
        loss_sum=loss_sum,
        grad_norm=grad_norm,
        stop=run.stop_requested(),
        save=run.save_requested(),
        step=progress.step,
        step_s=min(step_s, 1e9),
    )

"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from largebatch.distributed.runtime import Runtime
from largebatch.gradient.options import Gradient
from largebatch.gradient.step import Measures, Step
from largebatch.models.modes import train_mode
from largebatch.optim import set_lr
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.training.guard import Guard
from largebatch.training.progress import Progress
from largebatch.training.row_log import RowLog, own_row
from largebatch.training.step_clock import StepClock
from largebatch.training.step_report import StepReport
from largebatch.training.step_sums import Agreement, Status
from largebatch.training.steps import Steps
from largebatch.training.update import Update

START_STEPS = 3  # that may compile, on each rank at its own speed
Ending = bool | str | None
"""An observer's word on the end of the run: True to stop it, a text to finish it for this reason, None to go on."""


class Observer(Protocol):
    """Watches a run, and writes nothing into it: without any, the weights come out bit-identical.

    Called in a fixed order on every rank. Subclass it and override what is of use. `run.log` writes rows. What it has
    to remember belongs into `state_dict()` and `load_state_dict(state)`, which a checkpoint keeps if both are there:
    plain values and tensors in dicts and lists, those of rank 0.
    """

    def on_start(self, run: Run) -> Ending:
        """Before the first step. True: the run is not to begin; the same on every rank."""
        return None

    def asks(self, step: Step) -> Measures:
        """The measurements that it needs of a step. They depend on step and config alone, never on the rank."""
        return Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> Ending:
        """After every optimizer step. Whether it makes a collective depends on the step and the config alone.

        True: the run ends here, as stopped, and may be resumed. A text: it ends here, as finished, for this reason. The
        same on every rank.
        """
        return None

    def on_end(self, run: Run, status: str) -> bool | None:
        """After the last step; `status` as `train` returns it. True: it was stopped meanwhile."""
        return None


def absent_methods(observer: Any) -> list[str]:
    """The methods of an observer that this object lacks."""
    return [name for name in ("on_start", "asks", "after_step", "on_end") if not hasattr(observer, name)]


@dataclass
class Run:
    """Everything that the loop needs; `make_run` makes it from plain arguments.

    Attributes:
        runtime: the job.
        model: as `runtime.wrap` returned it.
        optimizer: steps the parameters of the model.
        steps: makes one step after the other, the same on every rank.
        gradient: puts the gradient of a global batch into `.grad`.
        update: steps the optimizer, or leaves a bad step out.
        agreement: lets the ranks agree on how the run stands.
        clip_norm: largest gradient norm; None: no clipping.
        scaled: gives the groups of the optimizer, and `clip_norm`, what follows the batch; None: only the rate does.
        observers: called in their order.
        stop_requested: whether this rank was asked to stop.
        rows: for the rows of `log`; None: there are none.
        progress: how far the run is, as it is reported.
        end_reason: why an observer finished the run before its last step; None: none did.
        clock: times the steps.
    """

    runtime: Runtime
    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: Steps
    gradient: Gradient
    update: Update
    agreement: Agreement
    clip_norm: float | None = None
    scaled: ScaledGroups | None = None
    observers: Sequence[Observer] = ()
    stop_requested: Callable[[], bool] = lambda: False
    rows: RowLog | None = None
    progress: Progress = field(default_factory=Progress)
    end_reason: str | None = None
    clock: StepClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = StepClock(self.runtime.device)
        for observer in self.observers:
            if absent := absent_methods(observer):
                raise TypeError(
                    f"{type(observer).__name__} has no {' and no '.join(absent)}, which the loop calls. Let it inherit "
                    "from largebatch.Observer, where each method has a default."
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in Run.__dataclass_fields__:
            raise AttributeError(
                f"run.{name}: Run has no such field, so that nothing would come of it. An observer returns from `asks` "
                "what a step is to measure, a reason from `after_step` to end the run, and logs by `run.log`; the rest "
                "is an argument of make_run."
            )
        super().__setattr__(name, value)

    @property
    def module(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return self.runtime.unwrap(self.model)

    @property
    def guard(self) -> Guard | None:
        """The guard that judges the steps, if there is one."""
        return self.update.guard

    def log(self, values: Mapping[str, Any]) -> None:
        """Write a row of these numbers, by SECTION/NAME, at the current step. Every rank calls it, and rank 0 writes.

        Raises:
            ValueError: for a key that is taken, a value that is not one number, or a run without rows.
        """
        row = own_row(values)
        if self.rows is None:
            raise ValueError(
                "run.log: this run has no rows. Give make_run(..., rows=RowLog([JsonlTracker(PATH)], num_samples=N))."
            )
        self.rows.log(self.progress, row)

    def ending(self, words: Sequence[Ending]) -> Status | None:
        """How the words of all observers end the run; None: it goes on. A stop comes first: it may be resumed."""
        if True in words:
            return "stopped"
        reasons = [word for word in words if isinstance(word, str)]
        if not reasons:
            return None
        self.end_reason = "; ".join(reasons)
        return "finished"


def train(run: Run) -> Status:
    """One optimizer step per global batch, until the plan is done, a stop is asked for, or the loss is not a number.

    A stop that is asked for inside a step is agreed on one step later, one inside an observer ends the run there.

    Returns:
        "finished", "stopped" or "diverged", the same on every rank.
    """
    with run.runtime.membership.training(lambda: run.steps.number):
        return _train(run)


def _train(run: Run) -> Status:
    last_of_start = run.progress.step + START_STEPS
    ending = run.ending([observer.on_start(run) for observer in run.observers])
    run.steps.begin(run.progress, [observer.asks for observer in run.observers])
    run.agreement.begin(run.progress)
    train_mode(run.module)
    status: Status = "running"
    while status == "running" and ending is None and (step := run.steps.next()) is not None:
        report = take_step(run, step)
        status = report.status
        if report.step == last_of_start:
            run.runtime.membership.started()
        ending = run.ending([observer.after_step(run, report) for observer in run.observers])
    if status == "running":
        status = run.agreement.end(is_last=run.progress.step == run.steps.num_steps)
    if status == "running":
        status = "finished" if ending is None else ending
    run.clock.settle(run.progress)
    stops_here = True in [observer.on_end(run, status) for observer in run.observers]
    run.gradient.statistics.merge()  # the model that is left is the run's, not this rank's part of it
    return "stopped" if stops_here and status == "finished" else status


def take_step(run: Run, step: Step) -> StepReport:
    """Consume one global batch: learning rate, gradient, update."""
    progress = run.progress
    run.clock.begin()
    set_lr(run.optimizer, step.lr)  # keeps the ratios between groups
    clip_norm = run.clip_norm
    if run.scaled is not None:
        run.scaled.write(run.optimizer, step.samples_seen)
        clip_norm = run.scaled.clip_norm_at(step.samples_seen)
    run.optimizer.zero_grad()
    run.update.begin()
    batch = run.gradient(step)  # .grad: that of the mean over the global batch
    has_norm = Measures.GRAD_NORM in step.measures
    grad_norm = run.runtime.grad_norm(run.optimizer, clip_norm) if has_norm else None  # and clips
    progress.advance(batch.plan.global_batch_size)
    sums = run.agreement.send(step, batch.loss_sum, grad_norm, progress, stop=run.stop_requested())
    decision = run.update(run, batch, sums)
    timeline = run.gradient.clock.timeline()
    status, saves_here = run.agreement.read(sums)  # of the step before: by now they have arrived
    run.clock.end(progress, waits=Measures.COMMUNICATION in step.measures)  # as `timeline` has
    seen = progress.samples_seen
    return StepReport(step, progress.step, seen, batch, sums, grad_norm, decision, timeline, saves_here, status)

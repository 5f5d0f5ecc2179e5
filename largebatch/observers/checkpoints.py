"""Checkpoints at intervals, of the best evaluation, and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from largebatch.checkpoint import (
    BackgroundWriter,
    CheckpointError,
    copied,
    newest_valid,
    pack_optimizer,
    require_run_values,
    save_checkpoint,
    unsound_weights,
)
from largebatch.duration import passes
from largebatch.loop import Run, StepReport
from largebatch.observers.evaluation import EvaluationObserver
from largebatch.observers.restoring import STATISTICS, memory_of, names_of, roll_back
from largebatch.observers.save_clock import SaveClock
from largebatch.trackers import Problems

# The sign with which a larger value is a better one.
BEST_BY = {"eval/val_loss": -1, "eval/val_accuracy": 1}


@dataclass
class CheckpointObserver:
    """Saves every `every` samples and every `every_s` seconds, when the run is stopped, and after the last step.

    Rank 0 writes, and its clock counts: it asks for a checkpoint with the numbers that ranks send each other anyway,
    and all save after the same step. A save changes nothing in the run, so results do not depend on the clock.

    After the last step one is saved when all rows are written, not before: no row would come twice.

    Attributes:
        folder: where `step_XXXXXXXX` folders go, and the best one into its folder `best`.
        every: samples between two; None: none by samples.
        every_s: seconds between two, whatever the samples; None: none by the clock.
        keep: how many to keep.
        identity: plain values that tell what the run is; stored and compared on resume.
        extra: plain values to store beside them.
        evaluation: comes before this observer; what it measured decides which is the best.
        best_by: the metric of the best one, a key of `BEST_BY`; None: no best one is kept.
        background: a step waits for a copy of the tensors only, which a thread then writes. While it writes, no other
            is begun: one that would come due is left out and counted. At the end the run waits for it.
        on_error: `warn`: a checkpoint that cannot be written is a problem to report, not a reason to lose the run.
            `stop`: every rank raises CheckpointError, in the background mode when the next one comes due or at the end.
        latest: that was written.
        origin: that the run was resumed from.
        changed_options: of the optimizer, which no checkpoint brings back; see `restore`.
    """

    folder: Path
    every: int | None
    keep: int
    identity: dict[str, Any]
    extra: dict[str, Any]
    evaluation: EvaluationObserver | None = None
    best_by: str | None = None
    every_s: float | None = None
    background: bool = False
    on_error: Literal["warn", "stop"] = "warn"
    latest: Path | None = None
    origin: Path | None = None
    changed_options: frozenset[str] = frozenset()
    _last_step: int = -1
    _best_value: float = -math.inf
    _failure: str | None = None
    _clock: SaveClock = field(default_factory=SaveClock)
    _writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    _problems: Problems = field(default_factory=lambda: Problems("checkpoints"))

    @property
    def problems(self) -> list[str]:
        """What could not be saved, one line per kind of trouble."""
        return self._problems.lines()

    def on_start(self, run: Run) -> None:
        """The step that the run starts from is saved already; so may be the best one so far."""
        self._last_step = run.progress.step
        if self.every_s is not None and run.runtime.is_main:
            self._clock = SaveClock(self.every_s)
            run.save_requested = self._clock.is_due
        if self.best_by is not None and run.progress.step > 0:
            known = None
            if run.runtime.is_main:
                best, _ = newest_valid(self.folder / "best", fits=require_run_values)
                known = best.values["best"].get(self.best_by) if best is not None else None
            known = run.runtime.broadcast(known)
            if known is not None:
                self._best_value = BEST_BY[self.best_by] * known
        if self.evaluation is not None and self.evaluation.made_up_at == run.progress.step:
            self.save(run)
            self._save_if_best(run)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Save, if the interval is over, or if the evaluation of this step is the best so far."""
        before = report.samples_seen - report.plan.global_batch_size
        is_due = self.every is not None and passes(self.every, before, report.samples_seen)
        by_clock = run.saves_here and self._last_step < report.step - 1  # else one came while the ranks agreed on it
        if (is_due or by_clock) and run.counted_step < run.num_steps:
            self.save(run)
        self._save_if_best(run)

    def on_end(self, run: Run, status: str) -> None:
        """Save the final weights, unless they are not numbers any more; all is on disk afterwards."""
        if status != "diverged":
            # In the background mode the one of this step may have been left out on rank 0, which others do not know.
            if self.background or self._last_step != run.progress.step:
                self.save(run, finally_=True)
            self._save_if_best(run)
        self._settle(run)

    def save(self, run: Run, *, finally_: bool = False) -> None:
        """Save now. Every rank calls it: batch norm statistics of all of them are saved, apart and merged.

        With `finally_` it waits for a write that goes on, instead of leaving this one out.

        Raises:
            CheckpointError: on every rank, where `on_error` is `stop` and one was not written.
        """
        self._last_step = run.progress.step
        with self._clock.saving():
            self._save(run, self.folder, self.keep, {}, wait=finally_)

    def roll_back(self, run: Run) -> bool:
        """Go back to the newest one, see `roll_back`; one that is being written counts. Every rank calls it."""
        if run.runtime.is_main:
            self._writer.wait()
        return roll_back(run, self.folder, self.origin, changed_options=self.changed_options)

    def _save_if_best(self, run: Run) -> None:
        """The metrics are the same on every rank, and so is the decision."""
        if self.best_by is None or self.evaluation is None or self.evaluation.last_step != run.progress.step:
            return
        value = float(self.evaluation.last.get(self.best_by, math.nan))
        if BEST_BY[self.best_by] * value > self._best_value:
            self._best_value = BEST_BY[self.best_by] * value
            self._save(run, self.folder / "best", 1, {self.best_by: value}, wait=True)

    def _save(self, run: Run, folder: Path, keep: int, best: dict[str, float], *, wait: bool) -> None:
        statistics = run.gradient.statistics
        of_ranks = statistics.state()
        with statistics.merged():
            if run.runtime.is_main:
                if wait:
                    self._writer.wait()
                self._note_background()
                if self._writer.is_busy:
                    self._problems.count("one was left out", "the one before it was still being written")
                else:
                    self._begin(self._write_of(run, folder, keep, best, of_ranks))
        self._agree(run)

    def _write_of(
        self, run: Run, folder: Path, keep: int, best: dict[str, float], of_ranks: dict[str, Tensor]
    ) -> Callable[[], None]:
        """A function that writes the run as it is now."""
        try:
            _require_finite(run)
        except CheckpointError as error:
            return partial(_raise, error)
        optimizer, values = pack_optimizer(run.optimizer, names_of(run.module))
        tensors = {"model": dict(run.module.state_dict()), "optimizer": optimizer}
        if of_ranks:
            tensors[STATISTICS] = of_ranks
        return partial(
            self._write,
            folder,
            keep,
            run.progress.step,
            copied(tensors) if self.background else tensors,
            {
                "step": run.progress.step,
                "samples_seen": run.progress.samples_seen,
                "identity": self.identity,
                "optimizer": values,
                "loss_scale": run.runtime.loss_scale_state(),
                "extra": self.extra,
                "best": best,
                "evaluation_owed": self.evaluation is not None and self.evaluation.is_owed,
                "memory": memory_of(run),
            }
            | ({} if run.guard is None else {"guard": run.guard.state()}),
        )

    def _write(
        self, folder: Path, keep: int, step: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]
    ) -> None:
        path = save_checkpoint(folder, step=step, tensors=tensors, values=values, keep=keep)
        if folder == self.folder:
            self.latest = path

    def _begin(self, write: Callable[[], None]) -> None:
        if self.background:
            self._writer.start(write)
            return
        try:
            write()
        except CheckpointError as error:
            self._note(error)

    def _note_background(self) -> None:
        """What a write that is over has ended with."""
        if not self._writer.is_busy and (error := self._writer.take_error()) is not None:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._problems.count("one was not saved", error)
        self._failure = str(error)

    def _settle(self, run: Run) -> None:
        """Wait for the thread, and tell what it ended with."""
        if run.runtime.is_main:
            self._writer.wait()
            self._note_background()
        if self.background:
            self._agree(run)

    def _agree(self, run: Run) -> None:
        """Where a failure is to stop the run, every rank learns of rank 0's."""
        if self.on_error == "stop":
            failure = run.runtime.broadcast(self._failure)
            if failure is not None:
                raise CheckpointError(f"{failure} The run stops here, as observers.checkpoint.on_error=stop says.")


def _raise(error: CheckpointError) -> None:
    raise error


def _require_finite(run: Run) -> None:
    """Divergence is noticed some steps later: until then it must not push good checkpoints out."""
    if name := unsound_weights(run.module):
        raise CheckpointError(f"at step {run.progress.step} {name} is not finite; earlier checkpoints are kept")

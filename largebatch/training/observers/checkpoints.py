"""Checkpoints at intervals, of the best evaluation, and at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from largebatch.records.checkpoint import (
    BackgroundWriter,
    NotSavedError,
    Staging,
    is_on_disk,
    newest_valid,
    require_run_values,
    save_checkpoint,
)
from largebatch.records.folder_lock import FolderInUseError
from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import Problems
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.evaluation import EvaluationObserver
from largebatch.training.observers.restoring import roll_back
from largebatch.training.observers.save_clock import SaveClock
from largebatch.training.observers.saved_state import OfRanks, SavedState, copied, own_of_ranks, state_of
from largebatch.training.observers.watched import Watched
from largebatch.training.step_report import StepReport

_BETWEEN_LOOKS_S = 1.0  # each asks a file system, perhaps over a network


@dataclass
class CheckpointObserver(Observer):
    """Saves every `every` samples and every `every_s` seconds, when the run is stopped, and after the last step.

    Rank 0 writes, and its clock counts: it asks for a checkpoint with the numbers that ranks send each other anyway,
    and all save after the same step. A save changes nothing in the run, so results do not depend on the clock.
    After the last step one is saved when all rows are written, not before: no row would come twice.

    Attributes:
        home: of the run: `step_XXXXXXXX` folders go into its `checkpoints`, the best one into `checkpoints/best`.
        every: samples between two; None: none by samples.
        every_s: seconds between two, whatever the samples; infinite: none by the clock.
        keep: how many to keep.
        identity: plain values that tell what the run is; stored and compared on resume.
        extra: plain values to store beside them.
        own: observers of the user's own by name, whose states it saves; see `load_own_states`.
        evaluation: comes before this observer; what it measured decides which is the best.
        best_by: what the best one is best by; None: no best one is kept.
        background: a step waits for a copy of the tensors only, which a thread then writes. While it writes, no other
            is begun: one that would come due is left out and counted. At the end the run waits for it.
        on_error: `warn`: a checkpoint that cannot be written is a problem to report, not a reason to lose the run.
            `stop`: every rank raises NotSavedError, in the background mode when the next one comes due. A folder that
            somebody renames is followed and one that is removed made anew; a checkpoint lost with it is such a failure.
        unsaved: after the end, on every rank: why the last weights are not on the disk; None: they are.
        origin: that the run was resumed from.
        changed_options: of the optimizer, which no checkpoint brings back; see `restore`.
    """

    home: RunFolder
    every: int | None
    keep: int
    identity: dict[str, Any]
    extra: dict[str, Any]
    evaluation: EvaluationObserver | None = None
    best_by: Watched | None = None
    every_s: float = math.inf
    background: bool = False
    on_error: Literal["warn", "stop"] = "warn"
    unsaved: str | None = None
    origin: Path | None = None
    changed_options: frozenset[str] = frozenset()
    own: Mapping[str, Observer] = field(default_factory=dict)
    clock: SaveClock = field(default_factory=SaveClock)
    _last_step: int = -1
    _looked_at: float = -math.inf
    _has_ended: bool = False
    _latest: str | None = None
    _best_value: float | None = None
    _failure: str | None = None
    _writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    _staging: Staging = field(default_factory=Staging)
    _problems: Problems = field(default_factory=lambda: Problems("checkpoints"))

    @property
    def problems(self) -> list[str]:
        """What could not be saved, one line per kind of trouble."""
        return self._problems.lines()

    @property
    def latest(self) -> Path | None:
        """The one that was written last."""
        return None if self._latest is None else self.home.checkpoints / self._latest

    def on_start(self, run: Run) -> None:
        """The step that the run starts from is saved already; so may be the best one so far."""
        self._last_step = run.progress.step
        self.clock = SaveClock(self.every_s if run.runtime.is_main else math.inf)
        if self.best_by is not None and run.progress.step > 0:
            is_main, folder = run.runtime.is_main, self.home.checkpoints / "best"
            best = newest_valid(folder, fits=require_run_values)[0] if is_main else None
            self._best_value = run.runtime.broadcast(
                None if best is None else best.values["best"].get(self.best_by.key)
            )
        if self.evaluation is not None and self.evaluation.made_up_at == run.progress.step:
            self.save(run)
            self._save_if_best(run)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Save, if the interval is over, or if the evaluation of this step is the best so far."""
        by_clock = report.saves_here and self._last_step < report.step - 1  # else one came while the ranks agreed on it
        if (report.taken.crosses(self.every) or by_clock) and not report.taken.is_last:
            self.save(run)
        elif time.monotonic() - self._looked_at >= _BETWEEN_LOOKS_S:
            self._look_around(run)
        self._save_if_best(run, report)

    def on_end(self, run: Run, status: str) -> None:
        """Save the final weights, unless they are not numbers any more; `unsaved` tells what is not on disk then."""
        self._look_around(run)
        self._has_ended = True
        for _ in range(2 * (status != "diverged")):  # the disk may take the second one: what was full often has room
            if self._last_step != run.progress.step:
                self._save(run, {}, wait=True)
            self._settle(run)
            self._last_step, self.unsaved = run.progress.step, self._why_unsaved(run)
            if self.unsaved is None:
                break
            self._last_step = -1
        if status != "diverged":
            self._save_if_best(run)
            if self.best_by is not None and self._best_value is None:
                self._problems.count(f"none is the best: no row had a number {self.best_by.key}", "")
        self._settle(run)

    def save(self, run: Run) -> None:
        """Save now. Every rank calls it: batch norm statistics of all of them are saved, apart and merged.

        Raises:
            NotSavedError: on every rank, where `on_error` is `stop` and one was not written.
        """
        self._last_step = run.progress.step
        with self.clock.saving():
            self._save(run, {}, wait=False)

    def roll_back(self, run: Run) -> bool:
        """Go back to the newest one, see `roll_back`; one that is being written counts. Every rank calls it."""
        self._look_around(run)
        with run.runtime.waiting_for_main():
            if run.runtime.is_main:
                self._writer.wait()
        return roll_back(run, self.home.checkpoints, self.origin, changed_options=self.changed_options)

    def _save_if_best(self, run: Run, report: StepReport | None = None) -> None:
        """The value is the same on every rank, and so is the decision."""
        value = None if self.best_by is None else self.best_by.read(run, report)
        if self.best_by is not None and value is not None and self.best_by.improves(value, self._best_value):
            self._best_value = value
            self._save(run, {self.best_by.key: value}, wait=True)

    def _save(self, run: Run, best: dict[str, float], *, wait: bool) -> None:
        self._look_around(run)
        statistics = run.gradient.statistics
        of_ranks = own_of_ranks(run)
        with statistics.merged(), run.runtime.waiting_for_main(is_long=wait or not self.background):
            if run.runtime.is_main:
                if wait:
                    self._writer.wait()
                self._note_background()
                if self._writer.is_busy:
                    self._problems.count("one was left out", "the one before it was still being written")
                else:
                    self._begin(run, best, of_ranks)
        self._agree(run)

    def _write_of(self, run: Run, best: dict[str, float], of_ranks: OfRanks) -> Callable[[], None]:
        """A function that writes the run as it is now."""
        state = state_of(run, of_ranks, self.own)
        if self.background or run.runtime.device.type == "cuda":
            state = copied(state, self._staging)
        state.values.update(identity=self.identity, extra=self.extra, best=best)
        state.values["evaluation_owed"] = self.evaluation is not None and self.evaluation.is_owed
        folder, keep = (self.home.checkpoints / "best", 1) if best else (self.home.checkpoints, self.keep)
        return partial(self._write, folder, state, keep=keep)

    def _write(self, folder: Path, state: SavedState, *, keep: int) -> None:
        state.settle()
        path = save_checkpoint(folder, keep=keep, tensors=state.tensors, values=state.values, step=state.values["step"])
        if folder.name != "best":
            self._latest = path.name

    def _begin(self, run: Run, best: dict[str, float], of_ranks: OfRanks) -> None:
        if self._failure is not None and self.on_error == "stop" and not self._has_ended:
            return  # all ranks are about to raise
        try:
            self.home.force_rows()
            write = self._write_of(run, best, of_ranks)
            if self.background:
                self._writer.start(write)
            else:
                write()
        except Exception as error:  # whatever it is, as in the thread: out of memory, a state that no file holds
            self._note(error)

    def _note_background(self) -> None:
        if not self._writer.is_busy and (error := self._writer.take_error()) is not None:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self._problems.count("one was not saved", error)
        self._failure = str(error)

    def _settle(self, run: Run) -> None:
        """Wait for the thread, and note what it ended with."""
        with run.runtime.waiting_for_main():
            if run.runtime.is_main:
                self._writer.wait()
                self._note_background()

    def _why_unsaved(self, run: Run) -> str | None:
        """Why the weights of this step are not on the disk; the same on every rank."""
        why = None
        if run.runtime.is_main:
            name = f"step_{run.progress.step:08d}"
            paths = [self.latest, self.origin]
            if not any(path and path.name.partition("-")[0] == name and is_on_disk(path) for path in paths):
                why = self._failure or f"{self.home.checkpoints / name} was removed"
        return run.runtime.broadcast(why)

    def _look_around(self, run: Run) -> None:
        """Notice what somebody did to the folder or to the newest checkpoint."""
        if not run.runtime.is_main:
            return
        self._looked_at = time.monotonic()
        was, told = self.home.path, None
        try:
            told = self.home.follow()
        except (OSError, FolderInUseError) as error:
            self._failure = f"{was} was removed and cannot be made anew: {error}"
            self._problems.count(self._failure, "")
        if told is not None:
            self._problems.count(told, "")
            if self.origin is not None and self.origin.is_relative_to(was):
                self.origin = self.home.path / self.origin.relative_to(was)
        if self.latest is not None and not self._writer.is_busy and not self.latest.exists():
            self._latest, self._failure = None, f"{self.latest} was removed while the run went on."
            self._problems.count(self._failure, "")

    def _agree(self, run: Run) -> None:
        """Where a failure is to stop the run, every rank learns of rank 0's; at the end `unsaved` tells it."""
        if self.on_error == "stop" and not self._has_ended:
            failure = run.runtime.broadcast(self._failure)
            if failure is not None:
                raise NotSavedError(f"{failure} The run stops here, as observers.checkpoint.on_error=stop says.")

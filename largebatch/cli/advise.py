"""`largebatch advise`: measures what the answer needs within a budget, then answers as `plan --advise` does."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from largebatch.cli.composition.composing import compose_config, run_verb
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, code_of

if TYPE_CHECKING:
    from largebatch.experiments.advice.settings import AdviseConfig
    from largebatch.experiments.advice.short_runs import ShortRun, Spans
    from largebatch.run.prepare import Prepared

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Compose, measure, answer; returns 0, or 1 if nothing is known of the critical batch afterwards."""
    return run_verb("advise", run, arguments, config_name="advise")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Make the runs that are still missing in the folder, then the other measurements; rank 0 answers."""
    from largebatch.cli.plan_advice import require_advisable
    from largebatch.distributed.signals import StopRequest
    from largebatch.experiments.advice.assessment import default_sizes
    from largebatch.experiments.advice.candidates import require_splits
    from largebatch.experiments.advice.settings import AdviseConfig
    from largebatch.experiments.advice.short_runs import Spans, geometry_of, ordered
    from largebatch.run.config.reading import parse_section
    from largebatch.run.prepare import prepare

    options = parse_section(config, "advise", AdviseConfig)
    prepared = prepare(config, os.environ, joins=True)
    require_advisable(prepared, options.batch_sizes, key="advise.batch_sizes")
    numbers = prepared.numbers
    batch = numbers.plan.global_batch_size
    sizes = options.batch_sizes or default_sizes(batch, min(numbers.num_samples, numbers.num_consumed))
    require_splits(prepared, sizes)
    folder = _folder(prepared)
    spans = Spans(numbers.num_consumed, numbers.schedule.warmup_samples, geometry_of(prepared.optimizer))
    work = _Work(config, overrides, options, prepared, folder, spans)
    work.say(f"{options.minutes:g} minutes at most, into {folder}")
    goes_on = f"stopped; the same command with run.dir={folder} continues"
    runs = ordered(batch, sizes, seed=prepared.config.seed, seeds=options.seeds)
    for one in runs:
        stop = StopRequest()
        if not work.train(one, stop, keeps_middle=one == runs[0]):
            work.say(goes_on)
            return code_of(stop.signal_name)
    try:
        work.measure(runs[0])
    except KeyboardInterrupt:
        work.say(goes_on)
        raise
    return work.agreed(lambda: work.conclude(sizes))


class _Work:
    """What the parts of the verb share."""

    def __init__(
        self,
        config: DictConfig,
        overrides: Sequence[str],
        options: AdviseConfig,
        prepared: Prepared,
        folder: Path,
        spans: Spans,
    ) -> None:
        self._config, self._overrides, self._options = config, overrides, options
        self._prepared, self._folder, self._spans = prepared, folder, spans
        self._end = time.monotonic() + 60 * options.minutes
        self._overheads: list[float] = []
        self.skipped: list[str] = []

    def say(self, line: str) -> None:
        """Print on rank 0."""
        if os.environ.get("RANK", "0") == "0":
            print(line, flush=True)

    def agreed(self, find_out: Callable[[], T]) -> T:
        """What rank 0 finds out, on every rank."""
        return _of_rank0(self._prepared, find_out)

    def train(self, one: ShortRun, stop: Any, *, keeps_middle: bool) -> bool:
        """Make a run if there is time; returns whether to go on."""
        from largebatch.experiments.advice.short_runs import (
            config_of,
            expected_seconds,
            has_two_sizes,
            is_finished,
            make_run,
        )

        total = self._spans.total

        def look() -> tuple[str, float | None]:
            if is_finished(one, self._folder):
                return "done", None
            expected = expected_seconds(one, self._folder, total=total, overheads=self._overheads)
            left = self._end - time.monotonic()
            is_late = left < (expected or 0.0) and has_two_sizes(self._folder)
            return "skip" if is_late or left <= 0 else "make", expected

        verdict, expected = self.agreed(look)
        if verdict != "make":
            why = "was made before" if verdict == "done" else f"left out: no time left ({_seconds(expected)} expected)"
            self.say(f"{_named(one)}: {why}")
            if verdict == "skip":
                self.skipped.append(_named(one))
            return True
        started, end = time.monotonic(), self._end
        made = config_of(one, self._config, self._spans, keeps_middle=keeps_middle)
        with stop:
            trained = make_run(one, made, self._folder, lambda: stop() or time.monotonic() > end)
        seconds = time.monotonic() - started
        steps = trained.summary.get("steps") or 0
        times = [float(row["time/step_s"]) for row in trained.rows if "time/step_s" in row]
        stepping = statistics.median(times) * steps if times else 0.0
        self._overheads.append(max(seconds - stepping, 0.0))
        about = "" if expected is None else f", {_seconds(expected)} expected"
        self.say(f"{_named(one)}: {trained.status}, {steps:,} steps in {_seconds(seconds)}{about}")
        is_over = self.agreed(lambda: time.monotonic() > end and not stop())
        return trained.status != "stopped" or is_over

    def measure(self, middle: ShortRun) -> None:
        """The other measurements, each if there is time and it is not there yet; branches are those of `middle`."""
        from largebatch.cli import find_lr, measure
        from largebatch.experiments.advice import mid_run_branches as branches
        from largebatch.experiments.advice.short_runs import middle_checkpoint

        world_size, options = int(os.environ.get("WORLD_SIZE", "1")), self._options
        if options.communication and world_size > 1:
            self._measure("communication", partial(measure.run, "communication"), "measure", [])
        if options.critical_batch:
            spans, left = self._spans, self._end - time.monotonic()
            checkpoint = middle_checkpoint(middle, self._folder, spans) or Path()
            why_not = partial(branches.why_not, middle, self._folder, spans, seconds_left=left)
            more = branches.settings_of(middle, spans, checkpoint)
            self._measure(branches.NAME, partial(measure.run, "critical-batch"), "measure", more, why_not)
        if options.find_lr:
            self._measure("find_lr", find_lr.run, "find_lr", ["find_lr.seeds=1"])

    def _measure(
        self,
        name: str,
        call: Callable[[DictConfig, list[str]], int],
        config_name: str,
        more: Sequence[str],
        why_not: Callable[[], str] = str,
    ) -> None:
        """Make the measurement if there is time, and nothing speaks against it."""
        from largebatch.run.config.reading import ConfigError

        path = self._folder / name / f"{name}.json"

        def look() -> str:
            if path.exists():
                return "was made before"
            why = why_not() if time.monotonic() < self._end else "no time left"
            return f"left out: {why}" if why else ""

        if verdict := self.agreed(look):
            if verdict.startswith("left out"):
                self.skipped.append(name)
            self.say(f"{name}: {verdict}")
            return
        started = time.monotonic()
        try:
            self._call(call, config_name, [*more, f"run.dir={path.parent}"])
        except ConfigError as error:  # of the settings, alike on every rank: the runs are evidence without it
            self.skipped.append(name)
            self.say(f"{name}: left out: {' '.join(error.errors)}")
        else:
            self.say(f"{name}: {_seconds(time.monotonic() - started)}")

    def _call(self, call: Callable[[DictConfig, list[str]], int], config_name: str, more: Sequence[str]) -> None:
        """Call another verb with the settings of this one; what it prints is in its record."""
        own = [one for one in self._overrides if not one.lstrip("+~").startswith(("advise.", "run.dir="))]
        config = compose_config([*own, *more], config_name=config_name)
        with contextlib.redirect_stdout(io.StringIO()):
            call(config, [])

    def conclude(self, sizes: Sequence[int]) -> int:
        """Answer from the folder: print, and write advice.json, advice.png and page.html."""
        from largebatch.cli.plan_advice import planned_of, show_advice
        from largebatch.experiments.advice.answer import advise
        from largebatch.experiments.advice.written import write_advice
        from largebatch.records.report.reading import read_evidence

        planned = planned_of(self._prepared, self._overrides, section="advise", folder=str(self._folder))
        advice = advise(read_evidence([self._folder]), planned, sizes)
        about = {
            "config": self._prepared.public,
            "settings": self._options.model_dump(),
            "skipped": self.skipped,
        }
        try:
            print(write_advice(advice, self._folder, about=about), end="\n\n")
        finally:  # a full disk does not take the answer
            show_advice(advice)
        return EXIT_DONE if advice.found.critical else EXIT_FAILED


def _of_rank0(prepared: Prepared, find_out: Callable[[], T]) -> T:
    """The value on rank 0, on every rank; between two runs there is no process group.

    Raises:
        LauncherError: on the other ranks, if rank 0 fails.
    """
    from largebatch.distributed.word_of_rank0 import word_of_rank0

    timeout_s = prepared.config.launcher.rendezvous_timeout_s
    told = word_of_rank0(os.environ, lambda: (find_out(),), is_final=lambda _: False, timeout_s=timeout_s)
    return find_out() if told is None else told[0]


def _folder(prepared: Prepared) -> Path:
    """The folder of this advice, new or of the same settings, on every rank."""
    from largebatch.experiments.advice.begun import require_same_advice
    from largebatch.records.run_folder import chosen_folder
    from largebatch.run.config.reading import ConfigError

    def choose() -> tuple[str, list[str]]:
        run = prepared.config.run
        folder = chosen_folder(run.dir, run.root, "advice")
        try:
            require_same_advice(folder, prepared.public)
        except ConfigError as error:
            return str(folder), error.errors
        return str(folder), []

    folder, errors = _of_rank0(prepared, choose)
    if errors:
        raise ConfigError(errors)
    return Path(folder)


def _named(one: ShortRun) -> str:
    return f"batch {one.batch:,}, seed {one.seed}"


def _seconds(value: float | None) -> str:
    return "some time" if value is None else f"{value:.0f} s"

"""`largebatch bench diagnostics`: the cost of measuring the noise scale, on this machine."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

from largebatch.diagnostics.intervals import median_interval
from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport

if TYPE_CHECKING:
    from largebatch.run.build import OpenRun
    from largebatch.run.prepare import Prepared

# A cycle: a measured step, the step after it, which may still pay for it, and two without.
STEPS_PER_CYCLE, WARMUP_CYCLES = 4, 10
FEWEST_CYCLES, MOST_CYCLES, BUDGET_S = 60, 400, 180
_MANY = 2**31  # steps: more than a measurement takes


def measure(config: DictConfig, overrides: list[str]) -> int:
    """Measure every fourth step of one run and print the extra time of a measured step; returns 0.

    observers.communication.every adds communication; observers.noise_scale.every=null leaves it alone.
    """
    import os

    from largebatch.run.build import open_run
    from largebatch.run.prepare import prepare
    from largebatch.training.observers import CommunicationObserver, NoiseScaleObserver

    asked = _intervals(config)
    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        OmegaConf.update(config, "run.root", folder)
        OmegaConf.update(config, "observers.progress", False)
        OmegaConf.update(config, "observers.metrics.every", _MANY)  # rows cost time of their own
        for name in asked:
            OmegaConf.update(config, f"observers.{name}.every", STEPS_PER_CYCLE)
        prepared = prepare(config, os.environ, joins=True)
        with open_run(prepared, lambda: False, overrides) as opened:
            stopwatch = _Stopwatch()
            measuring = [
                one for one in opened.run.observers if isinstance(one, (NoiseScaleObserver, CommunicationObserver))
            ]
            opened.run = replace(opened.run, observers=[*measuring, stopwatch])
            warmup_s = sum(_seconds_of_steps(opened, stopwatch, WARMUP_CYCLES)) / WARMUP_CYCLES
            fitting = opened.run.runtime.broadcast(int(BUDGET_S / warmup_s))
            step_s = _seconds_of_steps(opened, stopwatch, min(max(fitting, FEWEST_CYCLES), MOST_CYCLES) + 1)
            if opened.run.runtime.is_main:
                _print(prepared, opened, cost_of_measuring(step_s), asked)
    return 0


def _intervals(config: DictConfig) -> dict[str, int]:
    """Name of each measured quantity -> its interval in steps.

    Raises:
        ConfigError: if nothing is measured, or the intervals differ.
    """
    from largebatch.run.config.reading import ConfigError

    intervals = {name: config.observers[name].every for name in ("noise_scale", "communication")}
    asked = {name: every for name, every in intervals.items() if every is not None}
    if not asked:
        raise ConfigError(["observers.noise_scale.every=null: nothing is measured. Give a number of steps."])
    if len(set(asked.values())) > 1:
        raise ConfigError([f"observers: {asked}: steps of different kinds do not compare. Give one interval."])
    return asked


def _seconds_of_steps(opened: OpenRun, stopwatch: _Stopwatch, cycles: int) -> list[float]:
    from largebatch.training.loop import train

    opened.run.steps.end_after(opened.run.progress.step + cycles * STEPS_PER_CYCLE)
    train(opened.run)
    return stopwatch.step_s


class _Stopwatch(Observer):
    """Seconds of each step and of the observers before this one; steps do not overlap."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self._last = 0.0

    def on_start(self, run: Run) -> None:
        self.step_s = []
        self._last = time.perf_counter()

    def after_step(self, run: Run, report: StepReport) -> None:
        from largebatch.diagnostics.communication.rank_clocks import meet

        meet(run.runtime)
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now

    def on_end(self, run: Run, status: str) -> None: ...


class Cost(NamedTuple):
    """Extra time of a measured step, in plain steps of `step_s` seconds: median over cycles with its 95 % interval."""

    cycles: int
    step_s: float
    median: float
    low: float
    high: float


def cost_of_measuring(step_s: Sequence[float]) -> Cost:
    """The cost, from the seconds of steps 1, 2, ... of a run that measured every fourth step.

    A measured step and the next are compared with the mean of the two pairs of steps around them, so that a machine
    that gets slower or faster favours neither.

    >>> cost_of_measuring([1.0, 1.0, 1.0, 1.25] * 61)
    Cost(cycles=60, step_s=1.0, median=0.25, low=0.25, high=0.25)
    """
    starts = range(STEPS_PER_CYCLE - 1, len(step_s) - STEPS_PER_CYCLE, STEPS_PER_CYCLE)  # of the measured steps
    around = [[*step_s[start - 2 : start], *step_s[start + 2 : start + 4]] for start in starts]
    plain = statistics.median(itertools.chain.from_iterable(around))
    costs = sorted(
        (sum(step_s[start : start + 2]) - sum(without) / 2) / plain
        for start, without in zip(starts, around, strict=True)
    )
    return Cost(len(costs), plain, statistics.median(costs), *median_interval(costs))


def _print(prepared: Prepared, opened: OpenRun, cost: Cost, asked: dict[str, int]) -> None:
    from largebatch.records.trackers import print_plan

    plan, runtime, every = prepared.numbers.plan, opened.run.runtime, next(iter(asked.values()))

    def percent(share: float) -> str:
        return f"{100 * share:.2f} %"

    cut = f"{len(plan.micro_batch_sizes)} micro-batches on {plan.world_size} ranks, {runtime.device}"
    per_step, per_run = (f"95% interval {percent(cost.low / n)} to {percent(cost.high / n)}" for n in (1, every))
    print_plan(
        [
            ("case", f"{prepared.config.model['_target_']} on {prepared.config.data.name}", "model, data"),
            ("job", f"batch {plan.global_batch_size} in {cut}", "batch, launcher"),
            ("measured", ", ".join(asked).replace("_", " "), "observers"),
            ("step", f"{1000 * cost.step_s:.2f} ms", "median of the steps without a measurement"),
            ("measured step", f"{percent(cost.median)} more", f"median of {cost.cycles}, each against the two steps "
             f"before and after; {per_step}"),
            (f"every {every} steps", f"{percent(cost.median / every)} of the run", per_run),
            ("resolution", percent((cost.high - cost.low) / 2 / every), "of the run; a smaller cost would not show"),
        ],
        title="bench diagnostics",
    )  # fmt: skip

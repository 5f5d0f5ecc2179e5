"""Do batch sizes that are powers of two run faster? Each is timed against its two neighbours."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from largebatch.batch.random_keys import stream_key
from largebatch.diagnostics.intervals import median_interval
from largebatch.diagnostics.settings import PositiveFloat, Section
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.stopwatch import seconds_of
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.training_set import training_set
from largebatch.gradient.snapshots import measuring
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError
from largebatch.training.loop import Observer, Run


class Settings(Section):
    """See conf/experiment/textbook/powers_of_two.yaml."""

    powers: Annotated[list[Annotated[int, Field(ge=4)]], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=6)]
    seconds: PositiveFloat

    @field_validator("powers")
    @classmethod
    def _powers(cls, value: list[int]) -> list[int]:
        if wrong := [one for one in value if one & (one - 1)]:
            raise ValueError(f"{wrong[0]} is no power of two")
        return value


@dataclass(frozen=True)
class Timing:
    """Seconds of a forward and backward pass per sample, in every round, of a power of two and its neighbours.

    Attributes:
        power: 2^k.
        below, at, above: of 2^k - 1, 2^k and 2^k + 1 samples.
    """

    power: int
    below: list[float]
    at: list[float]
    above: list[float]

    @property
    def ratios(self) -> list[float]:
        """Per round, ascending: the power's time over the mean of its neighbours'. Below 1: the power is faster."""
        rounds = zip(self.below, self.at, self.above, strict=True)
        return sorted(2 * at / (below + above) for below, at, above in rounds)

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of that median."""
        return median_interval(self.ratios)


class Stopwatch(Observer):
    """Observer that times the passes at the end of a run, in rounds that visit all sizes in a random order.

    Attributes:
        seconds: batch size -> seconds per sample, one for each round.
        device: of the passes.
    """

    def __init__(self, dataset: Any, settings: Settings, *, seed: int) -> None:
        self.seconds: dict[int, list[float]] = {
            size: [] for power in settings.powers for size in (power - 1, power, power + 1)
        }
        self.device = ""
        self._dataset, self._settings, self._seed = dataset, settings, seed

    def on_end(self, run: Run, status: str) -> None:
        """As many passes at a time as take about `settings.seconds`."""
        rng = np.random.default_rng(stream_key(self._seed, "order of sizes"))
        self.device = run.runtime.device.type
        with measuring(run.module):
            passes = {size: self._pass(run, size) for size in self.seconds}
            repeats = {}
            for size, one in passes.items():
                seconds_of(one, self.device, 3)  # warm: allocations, and what a library decides at the first call
                repeats[size] = max(1, round(self._settings.seconds / seconds_of(one, self.device, 3)))
            for _ in range(self._settings.rounds):
                for size in rng.permutation(list(passes)).tolist():
                    self.seconds[size].append(seconds_of(passes[size], self.device, repeats[size]) / size)

    def _pass(self, run: Run, size: int) -> Callable[[], object]:
        subset = FixedSubset.random(self._dataset, size, seed=self._seed, micro_batch_size=size)
        ((inputs, targets),) = subset.batches(run.runtime)
        module: nn.Module = run.module
        loss = run.gradient.local.loss
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return lambda: torch.autograd.grad(loss.loss_per_sample(module(inputs), targets).sum(), parameters)


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train a little, so that the weights are those of a run, and time passes at its end."""
    dataset = training_set(experiment)
    if max(settings.powers) >= len(dataset):
        raise ConfigError([
            f"textbook.powers: {max(settings.powers)} and one more are needed, and the training set has {len(dataset)}."
        ])  # fmt: skip
    stopwatch = Stopwatch(dataset, settings, seed=int(experiment.config.seed))
    experiment.train("run", observers=[stopwatch])
    found = [
        Timing(power, *(stopwatch.seconds[size] for size in (power - 1, power, power + 1))) for power in settings.powers
    ]
    machine = f"{platform.machine()} {stopwatch.device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    return Result(
        title="Powers of two",
        question="Is a batch size that is a power of two faster than its neighbours?",
        sentences=_sentences(found, machine),
        tables=(_table(found),),
        figures=(_diagram(found),),
        numbers={"machine": machine, "timings": [_numbers(one) for one in found]},
    )


def _sentences(found: list[Timing], machine: str) -> list[str]:
    faster = [one for one in found if one.interval[1] < 1]
    slower = [one for one in found if one.interval[0] > 1]
    best = min(found, key=lambda one: one.ratio)
    if not faster:
        answer = f"No: none of {', '.join(str(one.power) for one in found)} is faster than its neighbours here."
    else:
        named = ", ".join(f"{one.power} ({1 - one.ratio:.0%})" for one in faster)
        answer = (
            f"At {len(faster)} of {len(found)} sizes: faster per sample than one sample less or more are {named}. By "
            "chance one size of forty looks so."
        )
    low, high = best.interval
    sentences = [
        answer,
        f"The best is {best.power}: a sample takes {best.ratio:.3f} times as long as in batches of {best.power - 1} "
        f"and {best.power + 1} (95 %: {low:.3f} to {high:.3f}).",
    ]
    if slower:
        sentences.append(f"Slower than their neighbours are {', '.join(str(one.power) for one in slower)}.")
    return [*sentences, f"Measured on {machine}: a model, a precision or a GPU of your own may answer otherwise."]


def _table(found: list[Timing]) -> Table:
    rows = []
    for one in found:
        low, high = one.interval
        times = [f"{1e6 * statistics.median(seconds):.3g}" for seconds in (one.below, one.at, one.above)]
        rows.append((f"{one.power:,}", *times, f"{one.ratio:.3f}", f"{low:.3f} to {high:.3f}"))
    headers = ("2^k", "us at 2^k - 1", "us at 2^k", "us at 2^k + 1", "2^k / neighbours", "95 % interval")
    return Table("forward and backward pass, per sample; medians over rounds", headers, rows)


def _diagram(found: list[Timing]) -> Diagram:
    powers = [one.power for one in found]
    low, high = ([one.interval[end] for one in found] for end in (0, 1))
    measured = Line("2^k / mean of neighbours", powers, [one.ratio for one in found], low, high, style="points")
    equal = Line("equally fast", powers, [1.0] * len(found), style="dashed")
    return Diagram(
        "time_of_powers_of_two",
        "Time per sample at a power of two, over that of its neighbours",
        Axis("batch size", "samples", log=True),
        Axis("ratio of times"),
        (measured, equal),
        "Bars: 95 % interval of the median over rounds. Below 1 the power of two is faster.",
    )


def _numbers(one: Timing) -> dict[str, Any]:
    low, high = one.interval
    return {
        "power": one.power,
        "seconds_per_sample": {"below": one.below, "at": one.at, "above": one.above},
        "ratio": one.ratio,
        "low": low,
        "high": high,
    }

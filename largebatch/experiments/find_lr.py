"""Learning-rate range tests of a prepared run over whole global batches, for several seeds and batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.diagnostics.learning_rate.range_test import Array, RangeCurve, RangeSettings, walk_rates
from largebatch.diagnostics.learning_rate.suggestion import Reading, Suggestion, read_curve, scaling_exponent, suggest
from largebatch.diagnostics.settings import PositiveInt
from largebatch.experiments.measure.weights import Weights
from largebatch.experiments.rewound import rewound
from largebatch.gradient.step import Measures
from largebatch.models.modes import train_mode
from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.result import Result, Table
from largebatch.run.config.findings import Findings
from largebatch.run.derive import solve_plan
from largebatch.run.parts import build_loader, build_run
from largebatch.run.prepare import Prepared
from largebatch.run.sent_weights import draw_weights
from largebatch.training.loop import Run, take_step
from largebatch.training.steps import Steps

_MANY = 2**31  # steps: more than a test takes
_ABOVE_START = 1.5  # times the first loss: a diverging curve is cut above it
_RATE, _LOSS = Axis("learning rate", log=True), Axis("loss, smoothed")


class FindLrConfig(RangeSettings):
    """Rates, seeds, batch sizes and weights of the range tests."""

    seeds: PositiveInt
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)] | None
    checkpoint: str | None


@dataclass(frozen=True)
class RangeTests:
    """Range tests of one batch size, by seed."""

    global_batch_size: int
    curves: Mapping[int, RangeCurve]

    @cached_property
    def readings(self) -> dict[int, Reading]:
        """The reading of each seed."""
        return {seed: read_curve(curve) for seed, curve in self.curves.items()}

    @cached_property
    def suggestion(self) -> Suggestion:
        """The suggestion from all seeds together."""
        return suggest(list(self.readings.values()))


def plans_of(prepared: Prepared, options: FindLrConfig, *, world_size: int) -> list[BatchPlan]:
    """A plan per batch size, ascending.

    Raises:
        ConfigError: with every problem: a batch that does not fit the set or the ranks, or a ramp.
    """
    findings, config, num_samples = Findings(), prepared.config, prepared.numbers.num_samples
    if config.batch.ramp.is_used:
        findings.errors.append(
            "batch.ramp: a range test has one batch size. Leave it out, or list find_lr.batch_sizes."
        )
    key, sizes = "find_lr.batch_sizes", sorted(set(options.batch_sizes or ()))
    if len(sizes) < len(options.batch_sizes or ()):
        findings.errors.append(f"{key}={options.batch_sizes}: a size is listed twice. Name each once.")
    if sizes and sizes[-1] > num_samples:
        findings.errors.append(f"{key}={options.batch_sizes}: the training set has {num_samples} samples. Use fewer.")
    plans = [prepared.numbers.plan]
    if sizes and not findings.errors:
        solved = [findings.attempt(key, partial(solve_plan, config, size, world_size)) for size in sizes]
        plans = [plan for plan in solved if plan is not None]
    findings.raise_if_any()
    return plans


def run_range_tests(
    prepared: Prepared, weights: Weights, plans: Sequence[BatchPlan], settings: RangeSettings, seeds: Sequence[int]
) -> list[RangeTests]:
    """Range tests for every plan. Every rank gets the same curves: losses are summed over ranks first.

    A seed sets data order, augmentation and dropout as in `largebatch train`, and without a checkpoint the initial
    weights. Every test has a fresh optimizer. No guard runs: it would skip the diverging steps. Weights, buffers, modes
    and random generators are restored bit for bit, after an error too.

    Args:
        prepared: the run; its scaling, schedule and length are ignored.
        weights: the starting point of all tests.
        plans: one per batch size.
        settings: shared by all tests.
        seeds: one test each per plan.
    """
    own, rank = replace(prepared, model=weights.module), weights.runtime.rank
    loader = build_loader(own, rank, plan=plans[0])
    run = build_run(own, weights.runtime, loader, plan=plans[0], num_steps=_MANY, is_guarded=False)

    def curve(plan: BatchPlan, seed: int) -> RangeCurve:
        rates: list[float] = []
        measured = run.steps.always | Measures.LOSS
        steps = Steps(run.steps.batches, lambda _: rates[-1], _MANY, seed=seed, always=measured)
        with rewound(run, prepared, steps) as test:
            if weights.checkpoint is None:
                draw_weights(weights.runtime, prepared.config, seed, prepared.train, test.module)
            train_mode(test.module)
            loader = build_loader(prepared, rank, plan=plan, seed=seed)
            steps.batches.begin(0, settings.steps, loader=loader, ramp=BatchRamp.of(plan))
            return walk_rates(partial(_step_at, test, rates), settings)

    return [RangeTests(plan.global_batch_size, {seed: curve(plan, seed) for seed in seeds}) for plan in plans]


def _step_at(run: Run, rates: list[float], lr: float) -> float:
    """Take the next step at this rate; returns its loss."""
    rates.append(lr)
    step = run.steps.next()
    assert step is not None
    return take_step(run, step).mean_loss


def result_of(tests: Sequence[RangeTests], *, title: str) -> Result:
    """The result of tests at one or several batch sizes, ascending; `title` names the run and its weights."""
    rows = [
        (f"{one.global_batch_size:,}", str(seed), *map(_rate_text, (read.steepest, read.minimum, read.divergence)))
        for one in tests
        for seed, read in one.readings.items()
    ]
    sentences, numbers = list(map(_sentence, tests)), _numbers(tests[-1])
    figures: list[Diagram | Surface] = [curves_of_seeds(tests[-1], title=title)]
    if len(tests) > 1:
        steepest = [(one.global_batch_size, read.steepest) for one in tests for read in one.readings.values()]
        slope = scaling_exponent([(size, rate) for size, rate in steepest if rate is not None])
        sentences.append(
            "The growth of the rate with the batch is not known: it needs three tests with a fastest fall."
            if slope is None
            else f"The rate at which the loss falls fastest grows with the batch to the power {slope:.3g}. Linear "
            "scaling has 1, the square root 0.5."
        )
        figures.append(map_of_batches(tests, title=title))
        exponent = None if slope is None else asdict(slope)
        numbers |= {"map": [_numbers(one) for one in tests], "scaling_exponent": exponent}
    headers = ("batch", "seed", "falls fastest", "lowest loss", "diverged")
    return Result("Learning-rate range test", sentences, [Table(title, headers, rows)], figures, numbers)


def _rate_text(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.3g}"


def _sentence(one: RangeTests) -> str:
    lr, reason = one.suggestion.lr, one.suggestion.reason
    if lr is None:
        return f"There is no suggestion for batch {one.global_batch_size:,}: {reason}"
    return f"The suggested learning rate for batch {one.global_batch_size:,} is {lr:.3g}: {reason}."


def _numbers(one: RangeTests) -> dict[str, Any]:
    lr, longest = one.suggestion.lr, max(one.curves.values(), key=lambda curve: len(curve.rates))
    return {
        "batch_size": one.global_batch_size,
        "suggestion": None if lr is None else {"lr": lr.value, "low": lr.low, "high": lr.high},
        "reason": one.suggestion.reason,
        "lr": list(longest.rates),
        "loss": {str(seed): list(curve.losses) for seed, curve in one.curves.items()},
        "seeds": {str(seed): asdict(reading) for seed, reading in one.readings.items()},
    }


def curves_of_seeds(one: RangeTests, *, title: str) -> Diagram:
    """Smoothed loss over the rate, a line per seed, and the suggestion as a dashed line across."""
    lines = [Line(f"seed {seed}", list(it.smoothed_rates), list(_cut(it))) for seed, it in one.curves.items()]
    drawn = [value for line in lines for value in line.y if value is not None and math.isfinite(value)]
    if (lr := one.suggestion.lr) is not None:
        lines.append(Line(f"suggestion {lr.value:.3g}", [lr.value] * 2, [min(drawn), max(drawn)], style="dashed"))
    caption = f"batch {one.global_batch_size:,}: {one.suggestion.reason}"
    return Diagram("find_lr", title, _RATE, _LOSS, tuple(lines), caption)


def map_of_batches(tests: Sequence[RangeTests], *, title: str) -> Surface:
    """Mean smoothed loss of the seeds over rate and batch size, and the suggested rates as a trail."""
    rates = next(iter(tests[0].curves.values())).settings.rates
    values = [list(np.mean([_at(curve, rates) for curve in one.curves.values()], axis=0)) for one in tests]
    found = [(one.suggestion.lr.value, one.global_batch_size) for one in tests if one.suggestion.lr is not None]
    trails = (Trail("suggestion", *map(list, zip(*found, strict=True))),) if found else ()
    caption = "Empty cells: the loss of a seed is far above its start, or its test has ended."
    sizes = [one.global_batch_size for one in tests]
    axis = Axis("batch size", "samples", log=True)
    return Surface("lr_map", title, _RATE, axis, _LOSS, list(rates), sizes, values, trails=trails, caption=caption)


def _cut(curve: RangeCurve) -> Array:
    """Smoothed losses; NaN where they are far above their start."""
    smoothed, start = curve.smoothed, float(curve.smoothed[0])
    return np.where(smoothed <= start + (_ABOVE_START - 1) * abs(start), smoothed, np.nan)


def _at(curve: RangeCurve, rates: Array) -> Array:
    """Smoothed losses at the given rates; NaN beyond the last one that the curve has."""
    return np.interp(np.log(rates), np.log(curve.smoothed_rates), _cut(curve), right=math.nan)

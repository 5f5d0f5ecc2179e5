"""`largebatch find-lr`: the learning rate for a batch, by a range test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_FAILED

if TYPE_CHECKING:
    from largebatch.batch.plan import BatchPlan
    from largebatch.diagnostics import RangeSettings
    from largebatch.diagnostics.learning_rate.findings import Found
    from largebatch.experiments.measure.weights import Weights
    from largebatch.records.figures.diagram import Diagram, Surface
    from largebatch.run.config.find_lr import FindLrConfig
    from largebatch.run.prepare import Prepared


def main(arguments: Sequence[str]) -> int:
    """Compose, test, suggest; returns 0 if a rate is suggested for every batch, 1 if not, 2 for wrong input."""
    return run_verb("find-lr", run, arguments, config_name="find_lr")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Test the composed run on all ranks of the launcher together."""
    from largebatch.diagnostics.learning_rate.findings import read_tests
    from largebatch.experiments.measure.range_tests import growing_momentum, run_range_tests
    from largebatch.experiments.measure.weights import open_weights
    from largebatch.run.config.find_lr import FindLrConfig
    from largebatch.run.config.reading import parse_section
    from largebatch.run.prepare import prepare

    options = parse_section(config, "find_lr", FindLrConfig)
    prepared = prepare(config, os.environ)
    settings, plans = plan_tests(prepared, options, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    seeds = [prepared.config.seed + number for number in range(options.seeds)]
    with open_weights(prepared, options.checkpoint, key="find_lr.checkpoint") as weights:
        curves = run_range_tests(prepared, weights, plans, settings, seeds)
        found = [read_tests(size, of, growing_momentum(prepared)) for size, of in curves.items()]
        if weights.runtime.is_main:
            _conclude(prepared, options, weights, found)
    return 0 if all(one.suggestion.lr is not None for one in found) else EXIT_FAILED


def plan_tests(prepared: Prepared, options: FindLrConfig, *, world_size: int) -> tuple[RangeSettings, list[BatchPlan]]:
    """The settings of every test, and a plan per batch size, ascending.

    Raises:
        ConfigError: with all that is wrong: a range without rates, a batch that the set or the ranks cannot have, a
            batch that changes over the run.
    """
    from largebatch.diagnostics import RangeSettings
    from largebatch.run.config.error_report import Report
    from largebatch.run.derive import solve_plan

    report, config, num_samples = Report(), prepared.config, len(prepared.train)
    settings = RangeSettings()
    try:
        settings = RangeSettings(options.min, options.max, options.steps, options.smoothing, options.diverged_at)
    except ValueError as error:
        report.errors.append(f"find_lr.{error}")
    if config.batch.ramp.is_used:
        report.errors.append(
            "batch.ramp: a range test is of one batch size. Leave it out, or list find_lr.batch_sizes."
        )
    key, sizes = "find_lr.batch_sizes", sorted(set(options.batch_sizes or ()))
    if len(sizes) < len(options.batch_sizes or ()):
        report.errors.append(f"{key}={options.batch_sizes}: a size is listed twice. Name each once.")
    if sizes and sizes[-1] > num_samples:
        report.errors.append(f"{key}={options.batch_sizes}: the training set has {num_samples} samples. Use fewer.")
    plans = [prepared.derived.plan]
    if sizes and not report.errors:
        solved = [report.attempt(key, partial(solve_plan, config, size, world_size)) for size in sizes]
        plans = [plan for plan in solved if plan is not None]
    report.raise_if_any()
    return settings, plans


def _conclude(prepared: Prepared, options: FindLrConfig, weights: Weights, found: Sequence[Found]) -> None:
    """Show the table and what follows from it, write record and pictures."""
    from largebatch.diagnostics.learning_rate.findings import HEADERS
    from largebatch.records.report.publish import show_result, write_result
    from largebatch.records.result import Result, Table
    from largebatch.records.run_folder import environment, new_folder

    config = prepared.config
    optimizer = str(config.optimizer["_target_"]).rpartition(".")[2]
    title = f"learning rates for {config.shown_name}, {optimizer}, from {weights.source}"
    result = Result(
        title="Learning-rate range test",
        sentences=_verdicts(prepared, found),
        tables=[Table(title, HEADERS, [row for one in found for row in one.rows()])],
        figures=_figures(found, title),
        numbers=_numbers(found) | {"settings": options.model_dump()},
    )
    folder = Path(config.run.dir) if config.run.dir else new_folder(config.run.root, "find-lr")
    about = {
        "unit": prepared.loss.unit,
        "weights": weights.source,
        "world_size": weights.runtime.world_size,
        "config": prepared.public,
        "environment": environment(),
    }
    show_result(result)
    write_result(result, folder / "find_lr.json", about=about)


def _verdicts(prepared: Prepared, found: Sequence[Found]) -> list[str]:
    """One sentence per batch size, and how the suggestion scales."""
    from largebatch.diagnostics.learning_rate.findings import exponent_over_batches, told
    from largebatch.experiments.measure.range_tests import growing_momentum

    lines, momentum = [], growing_momentum(prepared)
    for one in found:
        batch, reason = f"batch {one.global_batch_size:,}", one.suggestion.reason
        if one.suggestion.lr is None:
            lines.append(f"There is no suggestion for {batch}: {reason}")
        else:
            lines.append(f"The suggested learning rate for {batch} is {told(one.suggestion.lr)}: {reason}.")
        if one.suggestion.limit is not None:
            assert momentum is not None
            lines.append(
                f"Training with {batch} is stable below {told(one.suggestion.limit)}: {momentum.formula} of a "
                "quadratic."
            )
    if momentum is None:
        lines.append(
            "The largest stable rate is not known: only the steps of plain SGD without clipping are known to follow "
            "h_max."
        )
    if len(found) > 1:
        lines.append(
            "The rate at which the loss falls fastest grows with the batch to the power "
            f"{told(exponent_over_batches(found))}; linear scaling has 1, the square root 0.5."
        )
    return lines


def _figures(found: Sequence[Found], title: str) -> list[Diagram | Surface]:
    """The curves of the largest batch, and the map of all batches."""
    from largebatch.records.figures.lr_figures import range_diagram, range_map

    largest, suggested = found[-1], {}
    marks = {}
    for one in found:
        if one.suggestion.lr is not None:
            suggested[one.global_batch_size] = one.suggestion.lr.value
    if largest.suggestion.lr is not None:
        marks["suggestion"] = largest.suggestion.lr.value
    if largest.suggestion.limit is not None:
        marks["largest stable"] = largest.suggestion.limit.value
    caption = f"batch {largest.global_batch_size:,}: {largest.suggestion.reason}"
    figures: list[Diagram | Surface] = [range_diagram(largest.curves, marks, title=title, caption=caption)]
    if len(found) > 1:
        settings = next(iter(largest.curves.values())).settings
        curves = {one.global_batch_size: list(one.curves.values()) for one in found}
        figures.append(range_map(curves, list(settings.rates), suggested, title=title))
    return figures


def _numbers(found: Sequence[Found]) -> dict[str, Any]:
    """Those of the largest batch, with those of all batches in `map` if there are several."""
    import dataclasses

    from largebatch.diagnostics.learning_rate.findings import exponent_over_batches

    if len(found) == 1:
        return found[0].record()
    exponent = exponent_over_batches(found)
    several = {
        "map": [one.record() for one in found],
        "scaling_exponent": None if exponent is None else dataclasses.asdict(exponent),
    }
    return found[-1].record() | several

"""What runs at several batch sizes take to a target that they pass, beside the gap between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from largebatch.experiments.batch_costs import batch_costs, cost_figures, cost_numbers, cost_sentences, cost_table
from largebatch.experiments.study.settings import Metric, TargetConfig
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.run_files import read_run
from largebatch.records.report.seeds import by_seed, furthest
from largebatch.records.report.target_runs import run_to_target
from largebatch.records.result import Result


def parse_target(text: str) -> TargetConfig:
    """Read `eval/val_loss=0.2`.

    Raises:
        ValueError: if it is no metric and number.
    """
    metric, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if metric not in get_args(Metric) or not math.isfinite(number):
        raise ValueError(
            f"--target {text}: is no METRIC=VALUE with a metric among {', '.join(get_args(Metric))}. Write "
            "--target eval/val_loss=0.2."
        )
    try:
        return TargetConfig.model_validate({"metric": metric, "value": number})
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ValueError(f"--target {text}: {reason}") from None


def with_costs(result: Result, target: TargetConfig) -> Result:
    """The comparison with the costs of its runs up to their first evaluation at the target.

    Raises:
        ValueError: if no run has evaluated the metric.
    """
    folders = [folder for group in result.numbers["runs"].values() for folder in group]
    records = _furthest([read_run(Path(folder)) for folder in folders])
    runs = [run_to_target(record, target.metric, target.value) for record in records]
    if all(run.nearest is None for run in runs):
        known = [key for key in get_args(Metric) if any(record.last(key) is not None for record in records)]
        raise ValueError(
            f"--target {target.metric}={target.value:g}: no run has a value of {target.metric}. Choose among "
            f"{', '.join(known)}."
        )
    costs = batch_costs(runs)
    to = f"{target.metric} {target.direction} {target.value:g}"
    lines = [f"To {to}: {line}" for line in cost_sentences(costs)]
    return replace(
        result,
        sentences=[*result.sentences, *lines],
        tables=[*result.tables, cost_table(costs)],
        figures=[*result.figures, *cost_figures(costs)],
        numbers={**result.numbers, "target": target.model_dump(), "costs": cost_numbers(costs)},
    )


def _furthest(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One run per optimizer, batch size and seed: one that was broken off has missed nothing."""
    groups: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.optimizer, record.global_batch_size), []).append(record)
    return [furthest(same)[-1] for group in groups.values() for same in by_seed(group)]

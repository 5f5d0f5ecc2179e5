"""What runs at several batch sizes take to a target that they pass, beside the gap between them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from largebatch.experiments.batch_costs import batch_costs, cost_figures, cost_numbers, cost_sentences, cost_table
from largebatch.experiments.study.settings import Metric, TargetConfig
from largebatch.records.report.run_files import read_run
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
        if not math.isfinite(number):
            raise ValueError(value)
        return TargetConfig.model_validate({"metric": metric, "value": number})
    except (ValueError, ValidationError):
        raise ValueError(
            f"--target {text}: is no METRIC=VALUE with a metric among {', '.join(get_args(Metric))}. Write "
            "--target eval/val_loss=0.2."
        ) from None


def with_costs(result: Result, target: TargetConfig) -> Result:
    """The comparison with the costs of its runs up to their first evaluation at the target."""
    folders = [folder for group in result.numbers["runs"].values() for folder in group]
    runs = [run_to_target(read_run(Path(folder)), target.metric, target.value) for folder in folders]
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

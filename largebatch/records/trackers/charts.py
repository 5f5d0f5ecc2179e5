"""Charts that a W&B run shows without anybody setting them up: lines that belong together, over the samples seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from largebatch.records.rows.columns import Columns
from largebatch.records.rows.series import of_gap

_MOST_POINTS = 1000  # of a line; W&B draws no more of a table than 10,000 rows


@dataclass(frozen=True)
class Chart:
    """Lines over the samples seen.

    Attributes:
        name: key under which it is logged.
        title: what the lines are and their unit.
        lines: label -> (samples seen, values), both of one length and all finite.
    """

    name: str
    title: str
    lines: dict[str, tuple[list[float], list[float]]]


_QUANTILES = {"max": "largest", "q75": "75 %", "median": "median", "q25": "25 %", "min": "smallest"}
_CHARTS: dict[str, tuple[str, dict[str, str]]] = {
    "loss": (
        "loss (mean per sample or token)",
        {"train/loss": "training batches", "eval/train_loss": "training set", "eval/val_loss": "validation set"},
    ),
    "accuracy": (
        "accuracy (fraction correct)",
        {"eval/train_accuracy": "training set", "eval/val_accuracy": "validation set"},
    ),
    "generalization_gap": (
        "generalization gap (validation worse than training)",
        {"gap/loss": "loss", "gap/accuracy": "accuracy (fraction)"},
    ),
    "noise_scale": (
        "gradient noise scale and batch (samples)",
        {
            "noise_scale/ci_high": "noise scale, upper end of 95 %",
            "noise_scale/b_simple": "noise scale",
            "noise_scale/ci_low": "noise scale, lower end of 95 %",
            "train/global_batch_size": "global batch",
        },
    ),
    "communication": (
        "communication of the gradient (s per step)",
        {
            "communication/total_s": "exposed and hidden",
            "communication/exposed_s": "exposed",
            "communication/straggler_wait_s": "wait for the slowest rank",
        },
    ),
    "sharpness": ("largest Hessian eigenvalue", {"sharpness/lambda_max": "lambda_max"}),
    "trust_ratio": ("trust ratio over layers", {f"trust_ratio/{key}": label for key, label in _QUANTILES.items()}),
    "time": (
        "time of a step (s)",
        {
            "time/step_s": "whole step",
            "time/data_s": "waiting for data",
            "time/compute_s": "compute",
            "time/communication_s": "exposed communication",
        },
    ),
}


def default_charts(columns: Columns) -> list[Chart]:
    """The charts of a run that have data; a line without data is left out.

    >>> import math
    >>> from largebatch.records.rows.columns import columns_of
    >>> rows = [{"step": n, "samples_seen": 8 * n, "gap/loss": loss} for n, loss in ((1, 0.5), (2, math.nan))]
    >>> default_charts(columns_of(rows))[0].lines
    {'loss': ([8.0], [0.5])}
    """
    charts = []
    for name, (title, labels) in _CHARTS.items():
        lines = {label: _points(columns, key) for key, label in labels.items() if columns.has(key)}
        if lines:
            remark = of_gap(columns.is_gap_augmented) if name == "generalization_gap" else ""
            charts.append(Chart(f"charts/{name}", title + remark, lines))
    return charts


def _points(columns: Columns, key: str) -> tuple[list[float], list[float]]:
    """The finite values; of a long line every n-th."""
    x, y = columns.series(key)
    finite = np.isfinite(y)
    thinned = slice(None, None, int(finite.sum()) // _MOST_POINTS + 1)
    return x[finite][thinned].tolist(), y[finite][thinned].tolist()

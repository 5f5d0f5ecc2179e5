"""What the summaries of runs say about predictions: what was measured, and how predictions did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from largebatch.diagnostics.predictions.grades import Calibration, Grade, calibrations
from largebatch.records.result import Table

MEASURED, PREDICTIONS = "measured", "predictions"  # keys of summary.json
LABELS = {
    "step_time": ("time of a step", "s"),
    "epoch_time": ("time of an epoch", "s"),
    "memory": ("peak memory of a process", "bytes"),
    "exposed_communication": ("exposed communication of a step", "s"),
    "final_loss": ("validation loss at the end", ""),
    "gap_ratio": ("validation over training loss at the end", ""),
}
"""Key of what a run predicts -> its name and unit."""
AT_THE_END = ("final_loss", "gap_ratio")
"""Keys of what only a finished run has."""


def positive(values: Any, key: str) -> float | None:
    """A number above 0 of a record that another program may have written; None if it is none."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        return None
    return float(value)


def ends_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """What a finished run ended with; a loss that is not above 0 is left out, and so is the gap to it.

    The gap is the ratio of both losses: as a difference it may be 0 or below, where no error is a share of it.

    >>> ends_of({"status": "finished", "eval/val_loss": 0.6, "eval/train_loss": 0.5})
    {'final_loss': 0.6, 'gap_ratio': 1.2}
    >>> ends_of({"status": "stopped", "eval/val_loss": 0.6}), ends_of({"status": "finished", "eval/train_loss": 0.5})
    ({}, {})
    """
    validation, training = (positive(summary, f"eval/{name}_loss") for name in ("val", "train"))
    if summary.get("status") != "finished" or validation is None:
        return {}
    ends = {"final_loss": validation}
    ratio = positive({"gap_ratio": validation / training}, "gap_ratio") if training is not None else None
    return ends if ratio is None else ends | {"gap_ratio": ratio}


def grades_in(summary: Mapping[str, Any]) -> list[Grade]:
    """The graded predictions of a run's summary; entries that are none are left out."""
    found = summary.get(PREDICTIONS)
    grades = []
    for key, one in found.items() if isinstance(found, Mapping) else ():
        value, low, high, measured = (positive(one, name) for name in ("value", "low", "high", "measured"))
        if key in LABELS and value and low and high and measured and low <= value <= high:
            grades.append(Grade(key, value, low, high, measured, positive(one, "widened_by") or 1.0))
    return grades


def calibration_of(summaries: Iterable[Mapping[str, Any]]) -> list[Calibration]:
    """How well the predictions of all graded runs did, one per quantity."""
    return calibrations([grade for summary in summaries for grade in grades_in(summary)])


def calibration_table(found: Sequence[Calibration]) -> Table:
    """The same as a table: no plan without its error."""
    headers = (
        "quantity",
        "graded runs",
        "median error",
        "measured / predicted",
        "high / low",
        "inside the interval",
        "95 %",
    )
    rows = [
        (
            LABELS[one.quantity][0],
            f"{one.number}",
            f"{one.median_error:.1%}",
            f"{one.median_ratio:.3f}",
            f"{one.median_width:.3g}",
            f"{one.share.value:.0%}" + ("; too seldom: later intervals are wider" if one.is_doubtful else ""),
            f"{one.share.low:.0%} to {one.share.high:.0%}",
        )
        for one in found
    ]
    return Table("predictions of runs, graded by what was measured; intervals are for 95 %", headers, rows)


def calibration_lines(found: Sequence[Calibration]) -> list[str]:
    """The same as a line for each quantity; one that says that nothing is known where no run was graded."""
    if not found:
        return ["predictions: no run has graded its own yet, so how far off they are is not known"]
    return [
        f"predictions of {LABELS[one.quantity][0]}: {one.number} graded, median error {one.median_error:.1%}; "
        f"{one.inside} of {one.number} intervals held ({one.share.low:.0%} to {one.share.high:.0%}), of 95 % claimed; "
        f"their upper end is {one.median_width:.3g} times the lower one"
        for one in found
    ]

"""Predictions of a run before its first step, and their grades after its last one; rank 0 reads, writes and prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import LABELS, MEASURED, PREDICTIONS, positive
from largebatch.run.forecast.conditions import conditions
from largebatch.run.forecast.earlier_runs import Earlier, read_earlier
from largebatch.run.forecast.predictions import Coming, Prediction, predictions, record_of
from largebatch.run.prepare import Prepared

_SHOWN = ("step_time", "memory", "exposed_communication", "final_loss")


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it begins.

    Attributes:
        conditions: that time and memory depend on, for later runs to compare.
        found: quantity -> prediction; empty without earlier runs of the same kind.
        earlier: the runs that were read.
        problem: why nothing could be predicted; None: nothing went wrong.
    """

    conditions: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Prediction] = field(default_factory=dict)
    earlier: Earlier = field(default_factory=Earlier)
    problem: str | None = None

    def plan_entries(self) -> dict[str, Any]:
        """What plan.json says of it."""
        entries: dict[str, Any] = {"conditions": dict(self.conditions)}
        if self.found:
            entries[PREDICTIONS] = record_of(self.found)
        if self.earlier.left_out:
            entries["predictions_left_out"] = list(self.earlier.left_out)
        return entries

    def notes(self) -> list[str]:
        """The line to print before the first step; none without a prediction."""
        if self.problem is not None:
            return [f"nothing is predicted: {self.problem}"]
        if not self.found:
            return []
        told = [f"{LABELS[key][0]} {_range(self.found[key])}" for key in _SHOWN if key in self.found]
        left_out = f"; {len(self.earlier.left_out)} runs left out, see plan.json" if self.earlier.left_out else ""
        return [f"predicted: {'; '.join(told)}{left_out}"]

    def graded(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """The predictions with what was measured; a quantity that was not measured has no grade."""
        grades: dict[str, Any] = {}
        for key, record in record_of(self.found).items():
            if (value := positive(measured, key)) is not None:
                inside = record["low"] <= value <= record["high"]
                grades[key] = record | {MEASURED: value, "inside": inside, "ratio": value / record["value"]}
        return grades


def make_forecast(prepared: Prepared, folder: Path) -> Forecast:
    """Predict a run from those beside its folder, or in run.predict_from; it never raises: a run is worth more.

    Args:
        prepared: the run.
        folder: its own, which may lie among the others.
    """
    asked = prepared.config.run.predict_from
    given: dict[str, str] = {}
    try:
        given = conditions(prepared)
        if asked == "none" or len(prepared.numbers.ramp.plans) > 1:  # a time for each batch would be no time of a step
            return Forecast(given)
        where = folder.absolute().parent if asked == "auto" else Path(asked)
        earlier = read_earlier(where, folder.absolute())
        return Forecast(given, predictions(_coming(prepared, given), earlier) if earlier.runs else {}, earlier)
    except Exception as error:
        return Forecast(given, problem=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200])


def _coming(prepared: Prepared, given: Mapping[str, str]) -> Coming:
    plan = prepared.numbers.plan
    samples = max(map(plan.rank_batch_size, range(plan.world_size)))
    shape = Shape(samples, plan.grad_accum_steps, plan.max_micro_batch_size)
    return Coming(given, plan.global_batch_size, prepared.numbers.num_samples, shape)


def grade_row(grades: Mapping[str, Mapping[str, Any]]) -> str:
    """The line of the summary: each quantity as measured against its interval."""
    told = []
    for key in _SHOWN:
        if (one := grades.get(key)) is not None:
            held = "inside" if one["inside"] else "OUTSIDE"
            ends = f"{shown(one['low'], one['unit'])} to {shown(one['high'], one['unit'])}"
            told.append(f"{LABELS[key][0]} {shown(one[MEASURED], one['unit'])}, {held} {ends}")
    return "; ".join(told)


def _range(one: Prediction) -> str:
    return f"{shown(one.value, one.unit)} ({shown(one.low, one.unit)} to {shown(one.high, one.unit)})"


def shown(value: float, unit: str) -> str:
    """A value with its unit.

    >>> shown(0.0123, "s"), shown(75.0, "s"), shown(2**30, "bytes"), shown(0.25, "")
    ('12.3 ms', '75 s', '1 GiB', '0.25')
    """
    if unit == "bytes":
        return f"{value / 2**30:.3g} GiB"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    return f"{value:.4g}"

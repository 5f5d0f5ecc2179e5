"""Predictions of a run before its first step, and their grades after its last one; rank 0 reads, writes and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import MEASURED, PREDICTIONS, positive
from largebatch.run.forecast.conditions import OF_COST, conditions
from largebatch.run.forecast.earlier_runs import Earlier, read_earlier
from largebatch.run.forecast.predictions import MOST_APART, Coming, Prediction, predictions, record_of
from largebatch.run.prepare import Prepared

_SHOWN = {
    "step_time": "step",
    "memory": "memory",
    "exposed_communication": "communication",
    "final_loss": "validation loss",
    "gap_ratio": "validation / training loss",
}
"""What is printed, and its short name."""
_COLUMNS = 80
_UNITS = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"))}


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
        """Lines to print before the first step; none without a prediction that says something."""
        if self.problem is not None:
            return [f"nothing is predicted: {self.problem}"]
        told = [_range(_SHOWN[key], one) for key in _SHOWN if (one := self.found.get(key)) is not None and one.is_told]
        if told and self.earlier.left_out:
            told.append(f"{len(self.earlier.left_out)} left out, see plan.json")
        lines: list[str] = []
        for part in told:
            if lines and len(lines[-1]) + len(part) + 2 <= _COLUMNS:
                lines[-1] += f", {part}"
            else:
                lines.append(f"predicted: {part}")
        return lines

    def graded(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """The predictions with what was measured; a quantity that was not measured has no grade."""
        grades: dict[str, Any] = {}
        for key, record in record_of(self.found).items():
            if (value := positive(measured, key)) is not None:
                inside = record["low"] <= value <= record["high"]
                grades[key] = record | {MEASURED: value, "inside": inside, "ratio": value / record["value"]}
        return grades


def make_forecast(prepared: Prepared, folder: Path, *, is_over: bool = False) -> Forecast:
    """Predict a run from those beside its folder, or in run.predict_from; it never raises: a run is worth more.

    Args:
        prepared: the run.
        folder: its own, which may lie among the others.
        is_over: whether it has made its last step before: then nothing is left to predict.
    """
    asked = prepared.config.run.predict_from
    given: dict[str, str] = {}
    try:
        given = conditions(prepared)
        # With a ramp a time for each batch would be no time of a step.
        if asked == "none" or is_over or len(prepared.numbers.ramp.plans) > 1:
            return Forecast(given)
        where = folder.absolute().parent if asked == "auto" else Path(asked)
        earlier = read_earlier(where, folder.absolute())
        found = predictions(_coming(prepared, given), earlier) if earlier.runs else {}
        why = f"{asked} has {_lack(given, earlier)}" if asked != "auto" and not found else None
        return Forecast(given, found, earlier, why)
    except Exception as error:
        return Forecast(given, problem=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200])


def _lack(given: Mapping[str, str], earlier: Earlier) -> str:
    """What is missing in a folder that was named, and predicts nothing."""
    if not earlier.runs:
        return f"no run to predict from{f', {earlier.left_out[0]}' if earlier.left_out else ''}"
    differing = [[name for name in OF_COST if run.conditions.get(name) != given[name]] for run in earlier.runs]
    nearest = min(differing, key=len)
    if nearest:
        return f"no run of this kind; the nearest differs in {', '.join(nearest)}"
    return f"too few runs of this kind: {sum(not names for names in differing)}"


def _coming(prepared: Prepared, given: Mapping[str, str]) -> Coming:
    plan = prepared.numbers.plan
    samples = max(map(plan.rank_batch_size, range(plan.world_size)))
    shape = Shape(samples, plan.grad_accum_steps, plan.max_micro_batch_size)
    return Coming(given, plan.global_batch_size, prepared.numbers.num_samples, shape)


def grade_row(grades: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each quantity that was told before: as measured, against its interval; empty where none was."""
    told = []
    for key, name in _SHOWN.items():
        if (one := grades.get(key)) is not None and one["high"] <= MOST_APART * one["low"]:
            held = "inside" if one["inside"] else "OUTSIDE"
            value, low, high = shown((one[MEASURED], one["low"], one["high"]), one["unit"])
            told.append(f"{name} {value}, {held} {low} to {high}")
    return "\n".join(told)


def _range(name: str, one: Prediction) -> str:
    value, low, high = shown((one.value, one.low, one.high), one.unit)
    return f"{name} {value} ({low} to {high})"


def shown(values: Sequence[float], unit: str) -> list[str]:
    """Values in the unit that suits the largest of them, which stands behind the first and the last.

    >>> shown((0.0123, 0.0042, 0.0301), "s"), shown((0.5, 1.5), "s"), shown((2**29, 2**29 + 2**20), "bytes")
    (['12.3 ms', '4.2', '30.1 ms'], ['0.5 s', '1.5 s'], ['512 MiB', '513 MiB'])
    >>> shown((0.25, 0.2, 0.3), "")
    ['0.25', '0.2', '0.3']
    """
    scales = _UNITS.get(unit, ((1.0, ""),))
    scale, name = next((one for one in scales if max(values) >= one[0]), scales[-1])
    texts = [f"{value / scale:.4g}" if unit != "s" else f"{value / scale:.3g}" for value in values]
    return [f"{text} {name}".rstrip() if at in (0, len(texts) - 1) else text for at, text in enumerate(texts)]

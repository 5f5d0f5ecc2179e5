"""The studies on the page: who needed how many steps to the target, and the critical batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from largebatch.diagnostics.critical_batch.fewest_steps import rankings
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.report.evidence import Evidence, JsonRecord

_BOUND, _FEWEST = "not reached: at least", "fewest steps"
_BATCH, _STEPS = Axis("batch size", "samples", log=True), Axis("optimizer steps to the target", log=True)


@dataclass(frozen=True)
class Fit:
    """B_crit of an optimizer.

    Attributes:
        optimizer: its name.
        b_crit: in samples; an end that the data do not bound is 0 or infinite. None: there is none.
        is_supported: whether the evidence supports it.
        verdict: `supported`, `extrapolated` or `not supported`, with the numbers behind it.
    """

    optimizer: str
    b_crit: Interval | None
    is_supported: bool
    verdict: str


@dataclass(frozen=True)
class Study:
    """What `largebatch study` measured.

    Attributes:
        name: of its record.
        target: the target, in words.
        measured: optimizer -> steps at each batch size, ascending.
        fits: one per optimizer.
    """

    name: str
    target: str
    measured: Mapping[str, list[StepsToTarget]]
    fits: list[Fit]

    @property
    def num_points(self) -> int:
        """Measured batch sizes of all optimizers."""
        return sum(map(len, self.measured.values()))


def studies(evidence: Evidence) -> list[Study]:
    """The studies with numbers, the largest first."""
    found = [_study(record) for record in evidence.of("study")]
    return sorted((one for one in found if one.measured), key=lambda one: -one.num_points)


def _study(record: JsonRecord) -> Study:
    measured: dict[str, list[StepsToTarget]] = {}
    for point in record.result.numbers.get("points") or []:
        if (steps := _steps(point)) is not None:
            measured.setdefault(optimizer_name(str(point.get("optimizer"))), []).append(steps)
    ordered = {name: sorted(points, key=lambda one: one.batch_size) for name, points in measured.items()}
    fits = [_fit(fit) for fit in record.result.numbers.get("fits") or []]
    target = record.result.tables[0].title if record.result.tables else record.name
    return Study(record.name, target, ordered, fits)


def _steps(point: Mapping[str, Any]) -> StepsToTarget | None:
    """None for a point of an earlier version that has no steps."""
    reached = tuple(float(steps) for steps in point.get("steps") or [] if steps)
    censored = tuple(float(steps) for steps in point.get("censored_at") or [] if steps)
    if not reached + censored:
        return None
    num_runs = int(point.get("num_runs") or 1)
    summarised = num_runs if len(reached) == 1 and not censored and num_runs > 1 else 0
    return StepsToTarget(int(point["batch_size"]), reached, censored, summarised)


def _fit(fit: Mapping[str, Any]) -> Fit:
    estimate = fit.get("b_crit") or {}
    value = estimate.get("value")
    low, high = (default if (end := estimate.get(key)) is None else float(end)
                 for key, default in (("low", 0.0), ("high", math.inf)))  # fmt: skip
    b_crit = None if value is None else Interval(float(value), low, high)
    supported = bool(fit.get("supported")) and b_crit is not None
    return Fit(optimizer_name(str(fit.get("optimizer"))), b_crit, supported, str(fit.get("verdict", "")))


def picture(study: Study) -> Diagram:
    """Who needed the fewest steps at each batch size."""
    lines = [line for name, points in study.measured.items() for line in _lines(name, points)]
    lines.sort(key=lambda line: line.style == "bounds")
    winners = {one.batch_size: one.ordered[0][1].median[0] for one in rankings(study.measured) if one.winners}
    if winners:
        lines.append(Line(_FEWEST, list(winners), list(winners.values()), style="rings"))
    caption = f"{study.target[:1].upper()}{study.target[1:]}. Points: medians over seeds, each batch size tuned alike."
    if any(one.interval for points in study.measured.values() for one in points):
        caption += " Bars: their 95 % intervals, of 3 to 5 seeds the range."
    if winners:
        caption += " Rings: the fewest at that batch size."
    return Diagram("fewest_steps", "Who needs the fewest steps", _BATCH, _STEPS, tuple(lines), caption)


def _lines(name: str, points: list[StepsToTarget]) -> list[Line]:
    reached = [one for one in points if not one.median[1]]
    hidden = [one for one in points if one.median[1]]
    lines = []
    if reached:
        sizes, medians = [one.batch_size for one in reached], [one.median[0] for one in reached]
        ends = [one.interval or (None, None) for one in reached]
        low, high = [one for one, _ in ends], [one for _, one in ends]
        lines += [
            Line(name, sizes, medians, optimizer=name),
            Line(name, sizes, medians, low, high, style="points", optimizer=name),
        ]
    if hidden:
        bounds = [one.median[0] for one in hidden]
        lines.append(Line(_BOUND, [one.batch_size for one in hidden], bounds, style="bounds",
                          name=f"{name}: at least", optimizer=name))  # fmt: skip
    return lines

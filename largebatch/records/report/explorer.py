"""The batch-size explorer: the values of a slider over batch sizes, computed here; the page looks them up."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.report.batches import interval_columns
from largebatch.records.report.estimates import EXTRAPOLATED, NONE, TOO_WIDE, Estimate, Quantity
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group
from largebatch.records.report.quantities import quantities

_PER_OCTAVE = 4  # places of the slider between a batch size and its double
_SHOWN_UNITS = ("steps", "GiB", "samples", "kWh")
_CURRENCY = re.compile(r"[A-Z]{3}|[^\w\s]")
_BEYOND = 4  # the slider extends by this factor beyond the measured sizes


@dataclass(frozen=True)
class Explorer:
    """The explorer of one task and optimizer.

    Attributes:
        name: the group's.
        experiment, optimizer: the group's, by which a reader filters.
        sizes: batch sizes of the slider.
        start: place of the slider at first.
        quantities: rows of its table.
        estimates: of each quantity at each size.
        figures: of the quantities that have evidence.
    """

    name: str
    experiment: str
    optimizer: str
    sizes: list[int]
    start: int
    quantities: list[Quantity]
    estimates: list[list[Estimate]]
    figures: list[Diagram]

    def record(self) -> dict[str, Any]:
        """Texts by place of the slider, ready for JSON."""
        rows = [
            {
                "value": [value_text(one, quantity.unit) for one in estimates],
                "interval": [interval_text(one, quantity.unit) for one in estimates],
                "kind": [one.kind for one in estimates],
            }
            for quantity, estimates in zip(self.quantities, self.estimates, strict=True)
        ]
        return {"sizes": self.sizes, "rows": rows}


def explorers(groups: Sequence[Group], evidence: Evidence) -> list[Explorer]:
    """One per group."""
    return [_explorer(group, evidence, is_only=len(groups) == 1) for group in groups]


def _explorer(group: Group, evidence: Evidence, *, is_only: bool) -> Explorer:
    found = quantities(group, evidence, is_only=is_only)
    measured = list(group.by_batch)
    counts = [run.num_samples for run in group.runs if run.num_samples]
    sizes = slider_sizes(measured, most=max(counts) if counts else None)
    estimates = [[quantity.at(size) for size in sizes] for quantity in found]
    figures = [
        quantity_figure(quantity, sizes, row, group.optimizer)
        for quantity, row in zip(found, estimates, strict=True)
        if any(one.value is not None for one in row)
    ]
    start = sizes.index(measured[len(measured) // 2])
    return Explorer(group.name, group.experiment, group.optimizer, sizes, start, found, estimates, figures)


def slider_sizes(measured: Sequence[int], *, most: int | None) -> list[int]:
    """Batch sizes of the slider: the measured ones, and four per octave from a quarter to four times of them.

    >>> slider_sizes([8], most=16)
    [2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16]
    """
    low = max(min(measured) / _BEYOND, 1.0)
    high = max(min(max(measured) * _BEYOND, most or math.inf), max(measured))
    count = math.ceil(_PER_OCTAVE * math.log2(high / low)) if high > low else 0
    grid = [round(low * 2 ** (place / _PER_OCTAVE)) for place in range(count + 1)]
    return sorted({*(size for size in grid if size <= high), *measured, round(high)})


def value_text(one: Estimate, unit: str) -> str:
    """The value with its unit.

    >>> value_text(Estimate(0.0123), "s"), value_text(Estimate(44.9), "steps"), value_text(Estimate(None), "s")
    ('12.3 ms', '44.9 steps', 'no evidence')
    """
    return "no evidence" if one.value is None else _with_unit(one.value, unit)


def interval_text(one: Estimate, unit: str) -> str:
    """The 95 % interval, or why there is none.

    >>> interval_text(Estimate(1.0, 0.5, 2.0), "s"), interval_text(Estimate(3.0, kind="exact"), "")
    ('500 ms to 2 s', 'exact')
    >>> interval_text(Estimate(1.0, 1e-18, 1e18), "s")
    'not known: over 100-fold'
    """
    if one.value is None:
        return ""
    if one.kind == "exact":
        return "exact"
    if one.low is None or one.high is None:
        return "unknown"
    if one.is_too_wide:
        return TOO_WIDE
    return f"{_with_unit(one.low, unit)} to {_with_unit(one.high, unit)}"


def _with_unit(value: float, unit: str) -> str:
    if unit == "s":
        for factor, name in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= factor or name == "ms":
                return f"{value / factor:.3g} {name}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}" if unit in _SHOWN_UNITS or _CURRENCY.fullmatch(unit) else text


def quantity_figure(quantity: Quantity, sizes: Sequence[int], row: Sequence[Estimate], optimizer: str) -> Diagram:
    """A quantity over batch sizes, in the optimizer's colour.

    Solid where it is supported, dashed beyond, points where it was measured.
    """
    beyond = [one.kind in (EXTRAPOLATED, NONE) for one in row]
    # A dashed part begins at its solid neighbour, so that no gap is left between them.
    dashed = [beyond[i] or any(beyond[j] for j in (i - 1, i + 1) if 0 <= j < len(row)) for i in range(len(row))]
    lines = [
        _line("within the measured sizes", sizes, row, [not one for one in beyond]),
        _line("extrapolated", sizes, row, [dash and any(beyond) for dash in dashed], dashed=True),
    ]
    if points := quantity.measured:
        lines.append(Line("measured", list(points), *interval_columns(points.values()), "points"))
    drawn = tuple(replace(line, group=optimizer) for line in lines if any(value is not None for value in line.y))
    every = [value for line in drawn for value in line.y if value is not None]
    axis = Axis(quantity.label, quantity.unit, log=quantity.log and min(every) > 0)
    title = quantity.label[:1].upper() + quantity.label[1:]
    x = Axis("batch size", "samples", log=True)
    return Diagram(f"explorer_{quantity.key}", title, x, axis, drawn, f"From: {quantity.source}.")


def _line(
    label: str, sizes: Sequence[int], row: Sequence[Estimate], kept: Sequence[bool], *, dashed: bool = False
) -> Line:
    def column(key: str) -> list[float | None]:
        return [getattr(one, key) if keep else None for one, keep in zip(row, kept, strict=True)]

    def ends(key: str) -> list[float | None]:
        return [None if one.is_too_wide else end for one, end in zip(row, column(key), strict=True)]

    has_band = any(end is not None for end in ends("low"))
    low, high = (ends("low"), ends("high")) if has_band else (None, None)
    return Line(label, sizes, column("value"), low, high, "dashed" if dashed else "line")

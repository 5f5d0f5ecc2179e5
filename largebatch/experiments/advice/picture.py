"""The one picture: steps, samples and time to the target against the batch, and time against samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from largebatch.experiments.advice.assessment import Assessment
from largebatch.experiments.advice.sentences import recommended
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.report.estimates import Quantity
from largebatch.records.report.explorer import quantity_figure, slider_sizes

_REGION, _CANDIDATES = "critical batch, 95 %", "candidates"


def picture(found: Assessment) -> list[Diagram]:
    """Diagrams of what is known: over the batch, the critical region shaded, candidates ringed, the choice a point."""
    shown = [found.quantities[key] for key in ("steps", "samples", "time_to_target")]
    known = [one for one in shown if one.at(found.sizes[0]).value is not None]
    if not known:
        known = [one for one in (found.quantities.get("step_time"), found.quantities.get("epoch_time"))
                 if one is not None and one.at(found.sizes[0]).value is not None]  # fmt: skip
    figures = [_over_batch(found, one) for one in known]
    return [*figures, _pareto(found)] if len(known) == len(shown) else figures


def _over_batch(found: Assessment, quantity: Quantity) -> Diagram:
    sizes = slider_sizes(found.sizes, most=found.planned.num_samples)
    row = [quantity.at(size) for size in sizes]
    figure = quantity_figure(quantity, sizes, row, found.planned.optimizer)
    ends = [
        end
        for one in row
        for end in ((one.value,) if one.is_too_wide else (one.value, one.low, one.high))
        if end is not None and end > 0
    ]
    lines = list(figure.lines)
    lines.append(Line(_CANDIDATES, found.sizes, [quantity.at(size).value for size in found.sizes], style="rings"))
    if (choice := recommended(found)) is not None:
        one = quantity.at(choice.batch)
        lines.append(Line(f"the choice, {choice.batch:,}", [choice.batch], [one.value], style="points"))
    if found.critical:
        low, high = _within(found, sizes)
        floor, top = min(ends), max(ends)
        lines.append(Line(_REGION, [low, high], [None, None], [floor, floor], [top, top]))
    label, _, law = quantity.label.partition(", ")
    y = replace(figure.y, label=label, unit="" if law else figure.y.unit)
    return replace(figure, name=f"advice_{quantity.key}", lines=tuple(lines), y=y, caption="")


def _within(found: Assessment, sizes: Sequence[int]) -> tuple[float, float]:
    """The interval of the critical batch as far as the axis goes."""
    amount = found.critical[0].amount
    low, high = (min(max(end, sizes[0]), sizes[-1]) for end in (amount.low, min(amount.high, 2.0**60)))
    return low, high


def _pareto(found: Assessment) -> Diagram:
    """Time against samples: the candidates in the order of their size are the front."""
    samples, time = found.quantities["samples"], found.quantities["time_to_target"]
    sizes = slider_sizes(found.sizes, most=found.planned.num_samples)
    pairs = [(samples.at(size).value, time.at(size).value) for size in sizes]
    lines = [Line("all batch sizes", [one for one, _ in pairs], [other for _, other in pairs])]
    for size in found.sizes:
        place, reached = samples.at(size), time.at(size)
        has_ends = reached.low is not None and reached.high is not None and not reached.is_too_wide
        low, high = ([reached.low], [reached.high]) if has_ends else (None, None)
        lines.append(Line(f"batch {size:,}", [place.value], [reached.value], low, high, style="points", batch=size))
    values = [value for line in lines for value in line.y if value is not None]
    axis = Axis(time.label, time.unit, log=min(values) > 0 and math.isfinite(max(values)))
    title = "What the samples buy: time against samples"
    label, _, law = samples.label.partition(", ")
    x = Axis(label, "" if law else samples.unit, log=True)
    return Diagram("advice_pareto", title, x, axis, tuple(lines))

"""The loss of branches over their batch size, and the critical batch sizes in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from largebatch.records.figures.diagram import Axis, Diagram, Line, numbers

if TYPE_CHECKING:
    from largebatch.diagnostics.critical_batch.branches import Branches, Crossing

_SHOWN = 6.0  # times the height of the thresholds: a diverging branch is cut above it


def branch_figure(found: Branches, crossings: tuple[Crossing, Crossing], tolerance: float, *, unit: str) -> Diagram:
    """Mean loss with the paired interval of its rise, both thresholds, and both critical batches as vertical lines."""
    base, half = float(found.losses[:, 0].mean()), found.progress().value
    means, lows, highs = found.rises()
    ends = [found.batch_sizes[0], found.batch_sizes[-1]]
    highest = base + _SHOWN * max(tolerance, half)
    shown = [place for place, rise in enumerate(means) if base + rise <= highest]
    loss, low, high = (base + one[shown] for one in (means, lows, highs))
    lines = [
        Line(
            "loss after the same samples, with the 95 % interval of its rise",
            [found.batch_sizes[place] for place in shown],
            numbers(loss),
            numbers(low),
            numbers(high),
            "both",
        ),
        Line("smallest batch + tolerance", ends, [base + tolerance] * 2, style="dashed", group="tolerance"),
    ]
    bottom = min(float(low.min()), base)
    if half > 0:
        label = "smallest batch after half of the samples"
        lines.append(Line(label, ends, [base + half] * 2, style="dashed", group="half"))
    heights = (base + half, base + tolerance)
    marks = (("B_crit", "half"), ("within tolerance", "tolerance"))
    for (name, group), one, height in zip(marks, crossings, heights, strict=True):
        if one.value is not None:
            label = f"{name}: {_span(one)}"
            lines.append(Line(label, [one.value] * 2, [bottom, height], group=group, name=label))
    return Diagram(
        "critical_batch",
        f"Branches of {found.num_samples:,} samples",
        Axis("batch size", "samples", log=True),
        Axis("loss", f"per {unit}"),
        tuple(lines),
        f"{len(found.losses)} windows. A batch of B_crit needs all samples for the loss that the smallest batch has "
        "after half of them. " + _cut_text(len(means) - len(shown)),
    )


def _span(one: Crossing) -> str:
    low, high = ("?" if end is None or not math.isfinite(end) else f"{end:,.0f}" for end in (one.low, one.high))
    return f"{one.value:,.0f} ({low} to {high})"


def _cut_text(count: int) -> str:
    return f"{count} batch sizes lie far above." if count else ""

"""All-reduces against their size, and how a step's time is made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from largebatch.diagnostics import TransferFit
from largebatch.records.figures.diagram import Axis, Diagram, Line, numbers
from largebatch.records.figures.figure import Bar, Bars

_PREFIXES = ("", "k", "M", "G")


def transfer_figure(
    num_bytes: Sequence[int], seconds: Sequence[Sequence[float]], fit: TransferFit, parts: Sequence[int]
) -> Diagram:
    """Times of all-reduces against their size, with the fitted line.

    Args:
        num_bytes: sizes of the all-reduces, [n].
        seconds: median, lower and upper quartile of their times, [3][n].
        fit: through the lower quartiles.
        parts: sizes in which a gradient is sent.
    """
    median, low, high = seconds
    x = np.geomspace(min(num_bytes), max(num_bytes), 100)
    line = fit.latency_s + x * fit.s_per_byte
    ends = [min(low), max(high)]
    gradient = [(size, end) for size in sorted(set(parts)) for end in (*ends, None)]  # an upright line for each size
    return Diagram(
        "all_reduce",
        "Time of an all-reduce",
        Axis("size", "bytes", log=True),
        Axis("time of an all-reduce", "s", log=True),
        (
            Line("measured", list(num_bytes), list(median), list(low), list(high), "points"),
            Line(_law(fit), x[line > 0].tolist(), numbers(line[line > 0])),
            Line(_name_of(parts), [size for size, _ in gradient], [end for _, end in gradient], style="dashed"),
        ),
        "Points: medians with quartiles; the line goes through the lower ones.",
    )


def step_figure(rows: Mapping[str, Mapping[str, float]]) -> Bars:
    """How a step's time is made up.

    Args:
        rows: name -> its parts -> seconds, side by side.
    """
    bars = []
    for place, parts in enumerate(rows.values()):
        at = 0.0
        for name, length in parts.items():
            bars.append(Bar(place, at, at + length, name))
            at += length
    return Bars(
        "step_parts",
        "Parts of a step's time",
        Axis("time", "s"),
        Axis("part"),
        list(rows),
        tuple(bars),
        caption="Bars: medians; hidden communication runs beside computation, and both share the machine.",
    )


def _law(fit: TransferFit) -> str:
    latency = f"{1e3 * fit.latency_s:.3g} ms"
    if fit.bandwidth is None:
        return f"fit: {latency}, bandwidth unknown"
    return f"fit: {latency} + size / ({_with_prefix(fit.bandwidth)}B/s)"


def _name_of(parts: Sequence[int]) -> str:
    size = f"{_with_prefix(sum(parts))}B"
    return f"the gradient, {size}" if len(parts) == 1 else f"the gradient's {len(parts)} parts, together {size}"


def _with_prefix(value: float) -> str:
    """Three digits and a prefix."""
    thousands = min(max(int(np.log10(value)) // 3, 0), len(_PREFIXES) - 1) if value > 0 else 0
    return f"{value / 1000**thousands:.3g} {_PREFIXES[thousands]}"

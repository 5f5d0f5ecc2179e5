"""The marks of figures as traces of plotly: lines, stacks, bands, surfaces, bars."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from largebatch.records.figures.diagram import FEW_POINTS, Diagram, Line, Numbers, Surface, Trail
from largebatch.records.figures.figure import Bar, Bars
from largebatch.records.figures.legends import colour_of, dash_of, legend_labels

_DASHES = ("solid", "dot", "dashdot", "longdash", "longdashdot")  # once the colours are used up
_SYMBOLS: dict[str, dict[str, Any]] = {
    "points": {"size": 8},
    "bounds": {"symbol": "triangle-up-open", "size": 11, "line": {"width": 2}},
    "rings": {"symbol": "circle-open", "size": 18, "line": {"width": 2}, "color": "#7A7F85"},
}
_CONTOURS = 20
_MOST_POWERS = 8  # labels of a scale of colours
_FAINT = 0.35  # opacity of raw values under their smoothed course
_DIGITS = 6  # significant ones; more are not seen


def rounded(values: Numbers) -> list[float | None]:
    """Values with as many digits as can be seen.

    >>> rounded([1 / 3, None, 64])
    [0.333333, None, 64.0]
    """
    return [float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None for value in values]


def line_traces(figure: Diagram, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """A trace for every line, each after its band's."""
    in_legend = legend_labels(figure)
    entry_of = {line.series: line.label for line in reversed(figure.lines) if line.label in in_legend}
    traces: list[dict[str, Any]] = []
    seen: set[str] = set()
    for line in figure.lines:
        place, num_before = places[line.series], len(traces)
        if line.low is not None and line.high is not None and not line.is_points:
            traces.append(_band(line, colour_of(place), log=figure.y.log))
        is_named = line.label in in_legend and line.label not in seen and len(in_legend) > 1
        traces.append(_line(line, place, in_legend=is_named))
        entry = line.label if line.label in in_legend else entry_of[line.series]
        for trace in traces[num_before:]:
            trace["legendgroup"] = safe(entry)
            if line.optimizer or line.batch is not None:  # a reader can filter by them
                trace["meta"] = {"optimizer": line.optimizer, "batch": line.batch}
        seen.add(line.label)
    return traces


def _line(line: Line, place: int, *, in_legend: bool) -> dict[str, Any]:
    colour = colour_of(place)
    dash = dash_of(place) if line.dash is None else line.dash
    has_points = line.style == "both" and len(line.x) <= FEW_POINTS
    mode = "markers" if line.is_points else "lines+markers" if has_points else "lines"
    pattern = "dash" if line.style == "dashed" else _DASHES[dash % len(_DASHES)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "name": safe(line.label),
        "showlegend": in_legend,
        "x": rounded(line.x),
        "y": rounded(line.y),
        "line": {"color": colour, "dash": pattern, "width": 1.8},
        "marker": {"color": colour, "size": 6} | _SYMBOLS.get(line.style, {}),
        "hovertemplate": f"%{{y:.4g}} at %{{x:,.6g}}<extra>{safe(line.name or line.label)}</extra>",
    }
    if line.style == "stack":
        trace |= {"stackgroup": "all", "fillcolor": _translucent(colour, 0.7)}
        trace["line"]["width"] = 0
    elif line.style == "faint":
        trace |= {"opacity": _FAINT, "hoverinfo": "skip"}
        del trace["hovertemplate"]
        trace["line"]["width"] = 1
    elif line.style == "steps":
        trace["line"]["shape"] = "vh"
    elif line.style == "rings":
        trace["hoverinfo"] = "skip"
        del trace["hovertemplate"]
    if line.is_points and line.low is not None and line.high is not None:
        trace["error_y"] = _error(_apart(line.high, line.y), _apart(line.y, line.low), colour)
    return trace


def _error(above: Numbers, below: Numbers, colour: str) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour}


def bar_traces(figure: Bars, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """A trace for the bars of each label, the points, the lines between, and the texts."""
    labels = legend_labels(figure)
    traces = [
        _bars_of([bar for bar in figure.bars if bar.label == label], figure.rows, colour_of(places[label]))
        | {"name": safe(label), "showlegend": len(labels) > 1, "legendgroup": safe(label)}
        for label in labels
    ]
    shared = {"type": "scatter", "showlegend": False, "hoverinfo": "skip"}
    points = [bar for bar in figure.bars if bar.start == bar.end]
    colours = [colour_of(places[bar.series]) for bar in points]
    at = {"x": rounded([bar.end for bar in points]), "y": [bar.row for bar in points]}
    traces.append(shared | at | {"mode": "markers", "marker": {"color": colours, "size": 10}})
    if figure.connected:
        pairs = [place for one, other in itertools.pairwise(figure.bars) for place in (
            (one.end, one.row), (one.end, other.row), (None, None))]  # fmt: skip
        dotted = {"color": "#7A7F85", "dash": "dot", "width": 1}
        line = {"x": rounded([x for x, _ in pairs]), "y": [y for _, y in pairs], "mode": "lines", "line": dotted}
        traces.append(shared | line)
    right = [max(bar.start, bar.end, bar.end if bar.high is None else bar.high) for bar in figure.bars]
    texts = {
        "x": rounded(right),
        "y": [bar.row for bar in figure.bars],
        "text": [f"  {safe(bar.text)}" for bar in figure.bars],
    }
    traces.append(shared | texts | {"mode": "text", "textposition": "middle right", "cliponaxis": False})
    return traces


def _bars_of(bars: Sequence[Bar], rows: Sequence[str], colour: str) -> dict[str, Any]:
    ends, low, high = ([getattr(bar, key) for bar in bars] for key in ("end", "low", "high"))
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [bar.row for bar in bars],
        "base": rounded([bar.start for bar in bars]),
        "x": rounded([bar.end - bar.start for bar in bars]),
        "marker": {"color": colour},
        "customdata": [[safe(rows[bar.row]), bar.end - bar.start] for bar in bars],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]:.4g}<extra></extra>",
    }
    if any(end is not None for end in low):
        trace["error_x"] = _error(_apart(high, ends), _apart(ends, low), "#7A7F85")
    return trace


def _band(line: Line, colour: str, *, log: bool) -> dict[str, Any]:
    """The area between the ends, in pieces where they are not known between two places.

    On a logarithmic axis it stops at the lowest point that the axis has.
    """
    pieces = _pieces(line)
    if log:
        ends = [end for piece in pieces for row in piece for end in row[1:]]
        floor = min((end for end in ends if end > 0), default=1.0)
        pieces = [[(x, max(low, floor), max(high, floor)) for x, low, high in piece] for piece in pieces]
    x: list[float | None] = []
    y: list[float | None] = []
    for piece in pieces:  # a gap between two areas, or plotly fills the space between them
        x += [*([None] if x else []), *(row[0] for row in piece), *(row[0] for row in reversed(piece))]
        y += [*([None] if y else []), *(row[1] for row in piece), *(row[2] for row in reversed(piece))]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(x),
        "y": rounded(y),
        "fill": "toself",
        "fillcolor": _translucent(colour, 0.18),
        "line": {"width": 0},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _translucent(colour: str, opacity: float) -> str:
    return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def _pieces(line: Line) -> list[list[tuple[float, float, float]]]:
    """(x, low, high) of each stretch of the band in which both ends are known."""
    assert line.low is not None
    assert line.high is not None
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, low, high in zip(line.x, line.low, line.high, strict=True):
        if x is not None and low is not None and high is not None:
            pieces[-1].append((x, low, high))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def surface_trace(figure: Surface) -> dict[str, Any]:
    """Cells, or a landscape of contours; its scale of colours lies above it, where a title has room."""
    values = np.array([[np.nan if value is None else value for value in row] for row in figure.values], dtype=float)
    finite = values[np.isfinite(values)]
    log = figure.z.log and bool((finite > 0).all())
    drawn = np.log10(values) if log else values
    scale = {"orientation": "h", "x": 0.5, "y": 1.02, "yanchor": "bottom", "thickness": 10, "len": 1.0}
    return {
        "type": "contour" if figure.contours else "heatmap",
        "x": rounded(figure.columns),
        "y": rounded(figure.rows),
        "z": [rounded(row) for row in drawn.tolist()],
        "colorscale": "Viridis",
        **({"ncontours": _CONTOURS} if figure.contours else {}),
        "colorbar": scale | {"title": {"text": safe(str(figure.z)), "side": "top"}} | (_powers(finite) if log else {}),
        "hovertemplate": "%{z:.4g} at %{x:,.6g}, %{y}<extra></extra>",
    }


def _powers(values: np.ndarray) -> dict[str, Any]:
    """Ticks of a scale that shows logarithms: powers of ten, or 1, 2 and 5 where there are fewer than two."""
    if not len(values) or values.min() == values.max():
        return {}
    low, high = float(np.log10(values.min())), float(np.log10(values.max()))
    every = max(1, math.ceil((high - low) / _MOST_POWERS))
    powers = range(math.ceil(low), math.floor(high) + 1, every)
    if high - low >= 2:
        return {"tickvals": list(powers), "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    near = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)]
    shown = [value for value in near if low <= math.log10(value) <= high]
    return {"tickvals": [math.log10(value) for value in shown], "ticktext": [f"{value:g}" for value in shown]}


def trail_traces(trail: Trail, place: int) -> list[dict[str, Any]]:
    """The edge of a path, the path, and the point at its end."""
    colour = colour_of(place)
    shared = {"type": "scatter", "name": safe(trail.label), "legendgroup": safe(trail.label)}
    x, y = rounded(trail.x), rounded(trail.y)
    edge = {"color": "#ffffff", "width": 1.5}  # without one, a line of the landscape's own colours is lost in it
    point = {"mode": "markers", "x": x[-1:], "y": y[-1:], "showlegend": False}
    path = shared | {"mode": "lines", "x": x, "y": y}
    return [
        path | {"line": edge | {"width": 5}, "showlegend": False, "hoverinfo": "skip"},
        path | {"line": {"color": colour, "width": 2.5}},
        shared | point | {"marker": {"color": colour, "size": 12, "line": edge}},
    ]


def _apart(upper: Numbers, lower: Numbers) -> list[float | None]:
    pairs = zip(upper, lower, strict=True)
    return rounded([None if one is None or other is None else max(one - other, 0.0) for one, other in pairs])


def wrapped(title: str, width: int) -> str:
    """A title in lines no longer than an axis: so many letters."""
    return "<br>".join(safe(line) for line in textwrap.wrap(title, width))


def safe(text: str) -> str:
    """Plotly reads tags and entities in texts; a run's name has none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")

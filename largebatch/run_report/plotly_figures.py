"""Draws the figures of `trackers/diagram.py` for plotly: the one place that knows its JSON.

The page adds what depends on the reader: colours of the theme, the size, and how far a path has been walked.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.trackers.diagram import Axis, Diagram, Line, Numbers, Surface, Trail

# Okabe and Ito 2008, the two lightest darkened: 3 : 1 at least on white and on the page's dark background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A87400", "#BE5F93", "#3A8FC7", "#7A7F85")
_DASHES = ("solid", "dot", "dashdot", "longdash")  # once the colours are used up
_MODES = {"line": "lines", "dashed": "lines", "points": "markers", "both": "lines+markers"}
_TITLE_WIDTH = 36  # letters of an axis title in a line
_MOST_DECADES = 7  # labels of a logarithmic axis
_DIGITS = 6  # significant ones; more are not seen


@dataclass(frozen=True)
class Shown:
    """A figure and what plotly shows beyond it.

    Attributes:
        figure: what is drawn.
        names: of each line, told when it is pointed at: lines of one label share a colour and a place in the legend.
        row_names: of a surface, instead of numbers along y.
    """

    figure: Diagram | Surface
    names: Sequence[str] = ()
    row_names: Sequence[str] = ()


def plotly_figure(shown: Shown) -> dict[str, Any]:
    """`data` and `layout` of plotly, ready for JSON; of a surface with trails also `trails`, which the page moves.

    >>> figure = Diagram("loss", "A run", Axis("steps"), Axis("loss"), (Line("train", [1, 2], [0.5, 0.25]),))
    >>> drawn = plotly_figure(Shown(figure))
    >>> drawn["data"][0]["y"], drawn["layout"]["xaxis"]["title"]["text"]
    ([0.5, 0.25], 'steps')
    """
    figure = shown.figure
    axes = {"xaxis": _axis(figure.x, _extent(figure, "x")), "yaxis": _axis(figure.y, _extent(figure, "y"))}
    layout = {"title": {"text": _safe(figure.title)}, **axes}
    if isinstance(figure, Diagram):
        return {"data": _lines(figure, shown.names), "layout": layout | {"hovermode": "closest"}}
    if shown.row_names:
        layout["yaxis"] |= {"tickvals": list(figure.rows), "ticktext": [_safe(name) for name in shown.row_names]}
        layout["yaxis"]["automargin"] = True
    surface = _surface(figure)
    trails = [trace for i, trail in enumerate(figure.trails) for trace in _trail(trail, i)]
    drawn: dict[str, Any] = {"data": [surface, *trails], "layout": layout}
    if figure.trails:  # of each trail its edge comes first, then its line, then the point that moves along it
        drawn["trails"] = [
            {"x": rounded(one.x), "y": rounded(one.y), "trace": 3 + 3 * i} for i, one in enumerate(figure.trails)
        ]
    return drawn


def rounded(values: Numbers) -> list[float | None]:
    """As many digits as are seen.

    >>> rounded([1 / 3, None, 64])
    [0.333333, None, 64.0]
    """
    return [None if value is None or value != value else float(f"{value:.{_DIGITS}g}") for value in values]


def _axis(axis: Axis, extent: tuple[float, float] | None) -> dict[str, Any]:
    title = "<br>".join(_safe(line) for line in textwrap.wrap(str(axis), _TITLE_WIDTH))
    values: dict[str, Any] = {"title": {"text": title}, "type": "log" if axis.log else "linear"}
    if axis.log and extent and extent[1] > extent[0]:
        decades = math.log10(extent[1] / extent[0])
        # Plotly itself labels up to nine values per decade, which run into each other.
        values["dtick"] = math.ceil(decades / _MOST_DECADES) if decades > 2 else "D2"
    if axis.unit in ("samples", "steps"):
        values["exponentformat"] = "SI"
    return values


def _extent(figure: Diagram | Surface, key: str) -> tuple[float, float] | None:
    """The least and the largest positive value along an axis."""
    if isinstance(figure, Surface):
        values = list(figure.columns if key == "x" else figure.rows)
    else:
        columns = ("x",) if key == "x" else ("y", "low", "high")
        values = [value for line in figure.lines for column in columns for value in getattr(line, column) or ()]
    positive = [value for value in values if value is not None and value > 0]
    return (min(positive), max(positive)) if positive else None


def _lines(figure: Diagram, names: Sequence[str]) -> list[dict[str, Any]]:
    several = len({line.label for line in figure.lines}) > 1
    traces: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, (line, place) in enumerate(zip(figure.lines, figure.colour_places, strict=True)):
        colour = COLOURS[place % len(COLOURS)]
        if line.low is not None and line.high is not None and line.style != "points":
            traces.append(_band(line, colour, log=figure.y.log))
        name = names[number] if names else line.label
        traces.append(_line(line, place, name, in_legend=line.label not in seen and several))
        seen.add(line.label)
    return traces


def _line(line: Line, place: int, name: str, *, in_legend: bool) -> dict[str, Any]:
    colour = COLOURS[place % len(COLOURS)]
    dash = "dash" if line.style == "dashed" else _DASHES[place // len(COLOURS) % len(_DASHES)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": _MODES[line.style],
        "name": _safe(line.label),
        "legendgroup": _safe(line.label),
        "showlegend": in_legend,
        "x": rounded(line.x),
        "y": rounded(line.y),
        "line": {"color": colour, "dash": dash, "width": 1.8},
        "marker": {"color": colour, "size": 6},
        "hovertemplate": f"%{{y:.4g}} at %{{x:,.6g}}<extra>{_safe(name)}</extra>",
    }
    if line.style == "points" and line.low is not None and line.high is not None:
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": _apart(line.high, line.y),
            "arrayminus": _apart(line.y, line.low),
            "color": colour,
        }
    return trace


def _band(line: Line, colour: str, *, log: bool) -> dict[str, Any]:
    """The area between the ends; on a logarithmic axis it stops at the lowest point that the axis has."""
    assert line.low is not None
    assert line.high is not None
    rows = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if x is not None and low is not None and high is not None
    ]
    if log:
        floor = min((value for row in rows for value in row[1:] if value > 0), default=1.0)
        rows = [(x, max(low, floor), max(high, floor)) for x, low, high in rows]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded([*(row[0] for row in rows), *(row[0] for row in reversed(rows))]),
        "y": rounded([*(row[1] for row in rows), *(row[2] for row in reversed(rows))]),
        "fill": "toself",
        "fillcolor": f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},0.18)",
        "line": {"width": 0},
        "legendgroup": _safe(line.label),
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _surface(figure: Surface) -> dict[str, Any]:
    import numpy as np

    values = np.array([[np.nan if value is None else value for value in row] for row in figure.values], dtype=float)
    log = figure.z.log and bool((values[np.isfinite(values)] > 0).all())
    drawn = np.log10(values) if log else values
    return {
        "type": "contour" if figure.contours else "heatmap",
        "x": rounded(figure.columns),
        "y": rounded(figure.rows),
        "z": [rounded(row) for row in drawn.tolist()],
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": ("log10 of " if log else "") + _safe(str(figure.z)), "side": "right"}},
        "hovertemplate": "%{z:.4g} at %{x:,.6g}, %{y}<extra></extra>",
    }


def _trail(trail: Trail, place: int) -> list[dict[str, Any]]:
    colour = COLOURS[place % len(COLOURS)]
    shared = {"type": "scatter", "name": _safe(trail.label), "legendgroup": _safe(trail.label)}
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


def _safe(text: str) -> str:
    """Plotly reads tags and entities in texts; a run's name has none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")

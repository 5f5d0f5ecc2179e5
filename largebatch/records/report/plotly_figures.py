"""Draws the figures of `figures/diagram.py` for plotly: the one place that knows its JSON.

The page adds what depends on the reader: colours of the theme, the size, and how far a path has been walked.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.diagram import (
    Axis,
    Diagram,
    Line,
    Numbers,
    Surface,
    Trail,
    colour_places,
    legend_labels,
)

# Okabe and Ito 2008, the two lightest darkened: 3 : 1 at least on white and on the page's dark background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A87400", "#BE5F93", "#3A8FC7", "#7A7F85")
_DASHES = ("solid", "dot", "dashdot", "longdash", "longdashdot")  # once the colours are used up
_MODES = {"line": "lines", "dashed": "lines", "points": "markers", "both": "lines+markers"}
_TITLE_WIDTH = 28  # letters of an axis title in a line
_MOST_DECADES = 7  # labels of a logarithmic axis
_FEW_DECADES = 0.5  # labels at 1, 2 and 5 alone would be two or fewer
_PLAIN = (1e-4, 1e6)  # numbers between are written out
_DIGITS = 6  # significant ones; more are not seen


@dataclass(frozen=True)
class Shown:
    """A figure and what plotly shows beyond it.

    Attributes:
        figure: what is drawn.
        names: of each line, told when it is pointed at: lines of one label share a colour and a place in the legend.
        row_names: of a surface, instead of numbers along y.
        dashes: of each line, a place among the patterns: tells lines of one colour apart.
    """

    figure: Diagram | Surface
    names: Sequence[str] = ()
    row_names: Sequence[str] = ()
    dashes: Sequence[int] = ()


def plotly_figure(shown: Shown, places: Mapping[str, int] | None = None) -> dict[str, Any]:
    """`data` and `layout` of plotly, ready for JSON; of a surface with trails also `trails`, which the page moves.

    Args:
        shown: the figure.
        places: series -> place of its colour; None: in the order of the lines.

    >>> figure = Diagram("loss", "A run", Axis("steps"), Axis("loss"), (Line("train", [1, 2], [0.5, 0.25]),))
    >>> drawn = plotly_figure(Shown(figure))
    >>> drawn["data"][0]["y"], drawn["layout"]["xaxis"]["title"]["text"]
    ([0.5, 0.25], 'steps')
    """
    figure = shown.figure
    if places is None:
        (places,) = colour_places([figure])
    axes = {"xaxis": _axis(figure.x, _extent(figure, "x")), "yaxis": _axis(figure.y, _extent(figure, "y"))}
    layout = {"title": {"text": _safe(figure.title)}, **axes}
    if isinstance(figure, Diagram):
        return {"data": _lines(figure, shown, places), "layout": layout | {"hovermode": "closest"}}
    if shown.row_names:
        layout["yaxis"] |= {"tickvals": list(figure.rows), "ticktext": [_safe(name) for name in shown.row_names]}
        layout["yaxis"]["automargin"] = True
    surface = _surface(figure)
    trails = [trace for trail in figure.trails for trace in _trail(trail, places[trail.series])]
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
    return [float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None for value in values]


def _axis(axis: Axis, extent: tuple[float, float] | None) -> dict[str, Any]:
    """Plotly by itself writes 2 for 0.02 on a logarithmic axis, and 100n for a loss of 1e-7."""
    is_counted = axis.is_counted and (extent is None or extent[0] >= 1)
    values: dict[str, Any] = {
        "title": {"text": _wrapped(str(axis))},
        "type": "log" if axis.log else "linear",
        "exponentformat": "SI" if is_counted else "power",
    }
    if axis.log and extent and extent[1] > extent[0]:
        decades = math.log10(extent[1] / extent[0])
        # Plotly itself labels up to nine values per decade, which run into each other.
        digits = "D1" if decades < _FEW_DECADES else "D2"
        values["dtick"] = math.ceil(decades / _MOST_DECADES) if decades > 2 else digits
        if is_counted or decades <= 2 or (_PLAIN[0] <= extent[0] and extent[1] <= _PLAIN[1]):
            values["tickformat"] = "~s" if is_counted else "~g"
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


def _lines(figure: Diagram, shown: Shown, places: Mapping[str, int]) -> list[dict[str, Any]]:
    in_legend = legend_labels(figure)
    entry_of = {line.series: line.label for line in reversed(figure.lines) if line.label in in_legend}
    traces: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(figure.lines):
        place, num_before = places[line.series], len(traces)
        if line.low is not None and line.high is not None and line.style != "points":
            traces.append(_band(line, COLOURS[place % len(COLOURS)], log=figure.y.log))
        name = shown.names[number] if shown.names else line.label
        dash = shown.dashes[number] if shown.dashes else place // len(COLOURS)
        is_named = line.label in in_legend and line.label not in seen and len(in_legend) > 1
        traces.append(_line(line, place, name, dash=dash, in_legend=is_named))
        entry = line.label if line.label in in_legend else entry_of[line.series]
        for trace in traces[num_before:]:
            trace["legendgroup"] = _safe(entry)
        seen.add(line.label)
    return traces


def _line(line: Line, place: int, name: str, *, dash: int, in_legend: bool) -> dict[str, Any]:
    colour = COLOURS[place % len(COLOURS)]
    pattern = "dash" if line.style == "dashed" else _DASHES[dash % len(_DASHES)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": _MODES[line.style],
        "name": _safe(line.label),
        "showlegend": in_legend,
        "x": rounded(line.x),
        "y": rounded(line.y),
        "line": {"color": colour, "dash": pattern, "width": 1.8},
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
    for piece in pieces:  # a gap between two areas, or plotly fills what lies between them
        x += [*([None] if x else []), *(row[0] for row in piece), *(row[0] for row in reversed(piece))]
        y += [*([None] if y else []), *(row[1] for row in piece), *(row[2] for row in reversed(piece))]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(x),
        "y": rounded(y),
        "fill": "toself",
        "fillcolor": f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},0.18)",
        "line": {"width": 0},
        "showlegend": False,
        "hoverinfo": "skip",
    }


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
        "colorbar": {"title": {"text": _wrapped(("log10 of " if log else "") + str(figure.z)), "side": "right"}},
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


def _wrapped(title: str) -> str:
    """No longer than an axis."""
    return "<br>".join(_safe(line) for line in textwrap.wrap(title, _TITLE_WIDTH))


def _safe(text: str) -> str:
    """Plotly reads tags and entities in texts; a run's name has none."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")

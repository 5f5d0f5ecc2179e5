"""Draws figures for plotly, for the page and for W&B.

The page adds what depends on the reader: colours of the theme, the size, and how far a path has been walked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from largebatch.records.figures.diagram import Axis, Diagram, Numbers, Surface
from largebatch.records.figures.figure import Bars, Figure
from largebatch.records.figures.legends import colour_places, epoch_ticks
from largebatch.records.figures.plotly_marks import (
    bar_traces,
    line_traces,
    rounded,
    safe,
    surface_trace,
    trail_traces,
    wrapped,
)

_MOST_DECADES = 7  # labels of a logarithmic axis
_ALL_DIGITS = 3  # decades that are labelled at 1, 2 and 5
_X_TITLE_WIDTH, _Y_TITLE_WIDTH = 42, 28  # letters of an axis title in a line
_FEW_DECADES = 0.5  # labels at 1, 2 and 5 alone would be two or fewer
_LESS_THAN_DIGITS, _STEPS = 0.3, 3  # decades with one digit or none: labels at equal steps, about so many
_MOST_NAMES = 18  # of rows
_ROOM = (0.05, 0.2)  # left and right of bars, as a share of their extent: texts stand on the right
_PLAIN = (1e-4, 1e6)  # numbers between are written out


def plotly_figure(figure: Figure, places: Mapping[str, int] | None = None) -> dict[str, Any]:
    """`data` and `layout` of plotly, ready for JSON; of a surface with trails also `trails`, which the page moves.

    Args:
        figure: the one to draw.
        places: series -> place of its colour; None: in the order of the series.

    >>> from largebatch.records.figures.diagram import Line
    >>> figure = Diagram("loss", "A run", Axis("steps"), Axis("loss"), (Line("train", [1, 2], [0.5, 0.25]),))
    >>> drawn = plotly_figure(figure)
    >>> drawn["data"][0]["y"], drawn["layout"]["xaxis"]["title"]["text"]
    ([0.5, 0.25], 'steps')
    """
    if places is None:
        (places,) = colour_places([figure])
    axes = {
        "xaxis": axis_layout(figure.x, _extent(figure, "x"), width=_X_TITLE_WIDTH),
        "yaxis": axis_layout(figure.y, _extent(figure, "y")),
    }
    layout: dict[str, Any] = {"title": {"text": safe(figure.title)}, **axes}
    if isinstance(figure, Diagram):
        return _diagram(figure, places, layout)
    if isinstance(figure, Bars):
        layout |= {"barmode": "overlay", "hovermode": "closest"}
        layout["yaxis"] |= _names(range(len(figure.rows)), figure.rows)
        if figure.connected:
            layout["xaxis"]["range"] = _room(figure)
        return {"data": bar_traces(figure, places), "layout": layout}
    if figure.row_names:
        layout["yaxis"] |= _names(figure.rows, figure.row_names)
    if figure.square:
        layout["yaxis"] |= {"scaleanchor": "x", "constrain": "domain", "range": _ends(figure.rows)}
        layout["xaxis"] |= {"constrain": "domain", "range": _ends(figure.columns)}
    surface = surface_trace(figure)
    trails = [trace for trail in figure.trails for trace in trail_traces(trail, places[trail.series])]
    drawn: dict[str, Any] = {"data": [surface, *trails], "layout": layout}
    if any(len(trail.x) > 1 for trail in figure.trails):
        # Of each trail its edge comes first, then its line, then the point that moves along it.
        drawn["trails"] = [
            {"x": rounded(one.x), "y": rounded(one.y), "trace": 3 + 3 * i} for i, one in enumerate(figure.trails)
        ]
    return drawn


def _ends(places: Numbers) -> list[float]:
    known = [place for place in places if place is not None]
    return [min(known), max(known)]


def _room(figure: Bars) -> list[float]:
    """Ends of x with room for the texts beside the bars."""
    ends = [end for bar in figure.bars for end in (bar.start, bar.end, bar.low, bar.high) if end is not None]
    extent = max(ends) - min(ends) or 1.0
    return [min(ends) - _ROOM[0] * extent, max(ends) + _ROOM[1] * extent]


def _names(places: Sequence[float | None], names: Sequence[str]) -> dict[str, Any]:
    """The ticks of an axis of rows, the first at the top; of many rows every n-th is named."""
    every = -(-len(names) // _MOST_NAMES)
    shown = {"tickvals": list(places)[::every], "ticktext": [safe(name) for name in names[::every]]}
    return shown | {"autorange": "reversed", "automargin": True}


def axis_layout(
    axis: Axis, extent: tuple[float, float] | None = None, *, width: int = _Y_TITLE_WIDTH
) -> dict[str, Any]:
    """Plotly's layout of an axis.

    Plotly by itself writes 2 for 0.02 on a logarithmic axis, and 100n for a loss of 1e-7.

    Args:
        axis: the quantity.
        extent: the least and the largest positive value.
        width: letters of the title in a line.
    """
    is_counted = axis.is_counted and (extent is None or extent[0] >= 1)
    is_time = axis.unit == "s" and not axis.log  # written at every tick; Plotly leaves it out between powers of ten
    values: dict[str, Any] = {
        "title": {"text": wrapped(axis.label if is_time else str(axis), width), "standoff": 10},
        "type": "log" if axis.log else "linear",
        "exponentformat": "SI" if is_counted else "power",
    }
    if is_time:
        values["ticksuffix"] = " s"
    if axis.low is not None and axis.high is not None:
        values["range"] = [axis.low, axis.high]
    elif axis.low is not None or axis.high is not None:
        values["autorangeoptions"] = {"include": axis.low if axis.high is None else axis.high}
        values["rangemode"] = "tozero" if axis.low == 0 else "normal"  # equal values have a range around them
    if axis.falls:
        values["autorange"] = "reversed"
    if axis.log and extent and extent[1] > extent[0]:
        decades = math.log10(extent[1] / extent[0])
        # Plotly itself labels up to nine values per decade, which run into each other.
        digits = "D1" if decades < _FEW_DECADES else "D2"
        if decades < _LESS_THAN_DIGITS:
            digits = f"L{_round_step((extent[1] - extent[0]) / _STEPS):g}"
        values["dtick"] = math.ceil(decades / _MOST_DECADES) if decades > _ALL_DIGITS else digits
        if is_counted or decades <= _ALL_DIGITS or (_PLAIN[0] <= extent[0] and extent[1] <= _PLAIN[1]):
            values["tickformat"] = "~s" if is_counted else "~g"
    return values


def _round_step(least: float) -> float:
    """The next larger 1, 2 or 5 times a power of ten.

    >>> _round_step(0.00024), _round_step(1.0), _round_step(6)
    (0.0005, 1.0, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least)


def _extent(figure: Figure, key: str) -> tuple[float, float] | None:
    """The least and the largest positive value along an axis."""
    if isinstance(figure, Surface):
        values = list(figure.columns if key == "x" else figure.rows)
    elif isinstance(figure, Bars):
        values = [end for bar in figure.bars for end in (bar.start, bar.end)] if key == "x" else []
    else:
        columns = ("x",) if key == "x" else ("y", "low", "high")
        known = (getattr(line, column) for line in figure.lines for column in columns)
        values = [value for column in known if column is not None for value in column]
    positive = [value for value in values if value is not None and value > 0]
    return (min(positive), max(positive)) if positive else None


def _diagram(figure: Diagram, places: Mapping[str, int], layout: dict[str, Any]) -> dict[str, Any]:
    data, extent = line_traces(figure, places), _extent(figure, "x")
    if figure.samples_per_epoch and extent:
        ticks = epoch_ticks(extent[1], figure.samples_per_epoch)
        # In samples as the axis below, with names of its own: so it follows where a reader zooms.
        layout["xaxis2"] = {
            "overlaying": "x", "matches": "x", "side": "top", "title": {"text": "epochs"}, "tickvals": list(ticks),
            "ticktext": list(ticks.values()), "showgrid": False, "zeroline": False, "automargin": True,
        }  # fmt: skip
        # Plotly draws no axis without a trace.
        data.append({"type": "scatter", "x": [None], "y": [None], "xaxis": "x2", "showlegend": False})
    return {"data": data, "layout": layout | {"hovermode": "closest"}}

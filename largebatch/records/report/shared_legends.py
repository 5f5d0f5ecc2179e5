"""Figures that stand together: a series has one colour in all, and one legend serves where all would be alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.figures.figure import Bars, Figure
from largebatch.records.figures.legends import colour_places, legend_labels, legend_of_all
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.figures.plotly_marks import safe

_NEUTRAL = "#7A7F85"
_MOST = 2  # entries of a legend inside a figure: more leave no room for it on a phone


@dataclass(frozen=True)
class Entry:
    """An entry of a legend.

    Attributes:
        label: name of plotly's traces.
        colour: of its line or points.
        dash: pattern of its line, by plotly's names.
        symbol: of its points, by plotly's names; empty: it is a line.
        facet: `optimizer` or `batch`, which it filters on the whole page; empty: it hides its own series.
        value: of the facet.
    """

    label: str
    colour: str
    dash: str = "solid"
    symbol: str = ""
    facet: str = ""
    value: str = ""


@dataclass(frozen=True)
class Together:
    """Figures drawn for plotly.

    Attributes:
        drawn: as `plotly_figure` returns them.
        legend: one for all of them; empty where each has its own.
    """

    drawn: list[dict[str, Any]]
    legend: list[Entry]


def plotly_figures(figures: Sequence[Figure], fixed: Mapping[str, int] | None = None) -> Together:
    """Draw figures that stand together.

    Args:
        figures: the figures.
        fixed: series in lower case -> place of its colour on the whole page.
    """
    places = colour_places(figures, fixed)
    drawn = [plotly_figure(figure, own) for figure, own in zip(figures, places, strict=True)]
    shared = legend_of_all(figures)
    if len(figures) == 1 and not isinstance(figures[0], Bars) and len(legend_labels(figures[0])) > _MOST:
        shared = 0
    if shared is None:
        return Together(drawn, [])
    entries = _entries(drawn[shared])
    for one in drawn:
        one["layout"]["showlegend"] = False
    return Together(drawn, entries)


def _entries(drawn: dict[str, Any]) -> list[Entry]:
    traces = [trace for trace in drawn["data"] if trace.get("showlegend")]
    metas = [trace.get("meta") or {} for trace in traces]
    optimizers = {meta.get("optimizer") for meta in metas}
    if len(optimizers) > 1 and all(meta.get("batch") for meta in metas):
        return _of_both(traces)
    facet = "batch" if all(meta.get("batch") for meta in metas) else "optimizer"
    return [_entry(trace, facet, str(meta.get(facet) or "")) for trace, meta in zip(traces, metas, strict=True)]


def _entry(trace: dict[str, Any], facet: str, value: str) -> Entry:
    is_points = trace["mode"] == "markers"
    symbol = trace["marker"].get("symbol", "circle") if is_points else ""
    is_own = symbol in ("", "circle") and value  # bounds and rings are of no one optimizer
    colour = trace["marker"]["color"] if is_points else trace["line"]["color"]
    return Entry(trace["name"], colour, trace["line"]["dash"], symbol, facet if is_own else "", value if is_own else "")


def _of_both(traces: list[dict[str, Any]]) -> list[Entry]:
    """Colours are optimizers and dashes batch sizes: fewer entries than their combinations."""
    colours = {trace["meta"]["optimizer"]: trace["line"]["color"] for trace in traces}
    dashes = {trace["meta"]["batch"]: trace["line"]["dash"] for trace in traces}
    places = optimizer_places(colours)
    names = sorted(colours, key=lambda name: places[name.lower()])
    entries = [Entry(safe(name), colours[name], facet="optimizer", value=name) for name in names]
    return entries + [
        Entry(f"batch {size:,}", _NEUTRAL, dashes[size], facet="batch", value=str(size)) for size in sorted(dashes)
    ]

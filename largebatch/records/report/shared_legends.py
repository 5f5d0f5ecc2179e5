"""Figures that stand together: a series has one colour in all, and one legend serves where all would be alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.figures.figure import Bars, Figure
from largebatch.records.figures.legends import colour_places, legend_labels, legend_of_all

_MOST = 2  # entries of a legend inside a figure: more leave no room for it on a phone


@dataclass(frozen=True)
class Entry:
    """An entry of a legend; `label` is the name of plotly's traces."""

    label: str
    colour: str
    dash: str
    is_points: bool


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
    return [
        Entry(trace["name"], trace["line"]["color"], trace["line"]["dash"], trace["mode"] == "markers")
        for trace in drawn["data"]
        if trace.get("showlegend")
    ]

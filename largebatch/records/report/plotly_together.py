"""Figures that stand together: a series has one colour in all, and one legend serves where all would be alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.diagram import Diagram, colour_places, legend_labels
from largebatch.records.report.plotly_figures import Shown, plotly_figure

_MOST = 2  # entries of a legend inside a figure: more leave no room for it on a phone


@dataclass(frozen=True)
class Entry:
    """Of a legend: `label` is the text as plotly's traces have it."""

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


def plotly_figures(together: Sequence[Shown], optimizers: Sequence[str] = ()) -> Together:
    """Draw figures that stand together.

    Args:
        together: the figures.
        optimizers: in lower case; each has one colour on the whole page.
    """
    figures = [shown.figure for shown in together]
    places = colour_places(figures, optimizers)
    drawn = [plotly_figure(shown, own) for shown, own in zip(together, places, strict=True)]
    legends = [
        legend_labels(one) if isinstance(one, Diagram) else [trail.label for trail in one.trails] for one in figures
    ]
    most = max((one for one, figure in zip(legends, figures, strict=True) if isinstance(figure, Diagram)),
               key=len, default=[])  # fmt: skip
    is_shared = all(set(one) <= set(most) for one in legends) and len(most) > (1 if len(legends) > 1 else _MOST)
    if not is_shared:
        return Together(drawn, [])
    entries = _entries(drawn[legends.index(most)])
    for one in drawn:
        one["layout"]["showlegend"] = False
    return Together(drawn, entries)


def _entries(drawn: dict[str, Any]) -> list[Entry]:
    return [
        Entry(trace["name"], trace["line"]["color"], trace["line"]["dash"], trace["mode"] == "markers")
        for trace in drawn["data"]
        if trace.get("showlegend")
    ]

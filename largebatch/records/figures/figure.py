"""Bars, the union of all kinds of figures, and how a figure is read from its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.json_values import json_values


@dataclass(frozen=True)
class Bar:
    """A bar of one row, from `start` to `end`; where both are equal it is a point.

    Attributes:
        row: its place among the rows, from 0.
        start, end: along x.
        label: bars of one label have one colour, and an entry of the legend; empty: a point that needs none.
        low, high: ends of the 95 % interval of `end`; None: not known.
        text: written beside it.
    """

    row: int
    start: float
    end: float
    label: str = ""
    low: float | None = None
    high: float | None = None
    text: str = ""

    @property
    def series(self) -> str:
        """All bars of one series have one colour."""
        return self.label


@dataclass(frozen=True)
class Bars:
    """Horizontal bars in rows, the first at the top: parts of a whole, or a waterfall.

    Attributes:
        name: of its file, and of its key in W&B.
        title: names the content.
        x: the axis of lengths.
        y: the axis of rows.
        rows: their names.
        bars: in their order.
        connected: whether it is a waterfall, in which a line leads from the end of each bar to the next.
        caption: how to read it; may be empty.
        labels: in the order of their colours; those of bars that are not among them come after.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    rows: Sequence[str]
    bars: tuple[Bar, ...]
    connected: bool = False
    caption: str = ""
    labels: Sequence[str] = ()

    def record(self) -> dict[str, Any]:
        """Ready for JSON; NaN and infinity become None."""
        return {"type": "bars"} | json_values(dataclasses.asdict(self))


Figure = Diagram | Surface | Bars


def from_record(record: dict[str, Any]) -> Figure:
    """The figure that `record()` was made of, with None for NaN and infinity.

    >>> figure = Diagram("loss", "A run", Axis("steps"), Axis("loss"), (Line("train", [1], [0.5]),))
    >>> from_record(figure.record()) == figure
    True

    Raises:
        ValueError: if it is no record of a figure.
    """
    try:
        kind, values = record["type"], {key: value for key, value in record.items() if key != "type"}
        values |= {key: Axis(**values[key]) for key in ("x", "y", "z") if key in values}
        if kind == "diagram":
            return Diagram(**values | {"lines": tuple(Line(**line) for line in values["lines"])})
        if kind == "surface":
            return Surface(**values | {"trails": tuple(Trail(**trail) for trail in values["trails"])})
        if kind == "bars":
            return Bars(**values | {"bars": tuple(Bar(**bar) for bar in values["bars"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of a figure: {type(error).__name__}: {error}") from error
    raise ValueError(f"no record of a figure: its type is {kind!r}, not diagram, surface or bars.")

"""A figure as values: one description is drawn as a PNG, in an interactive page and in W&B.

A figure has a JSON form. A record on disk keeps its figures, and each reader draws them in its own way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from largebatch.records.json_values import json_values

Style = Literal["line", "dashed", "points", "both", "faint", "steps", "stack", "bounds", "rings"]
Numbers = Sequence[float | None]  # None: not known, or not finite
_LOG_RANGE = 50  # a positive quantity that spans more than this factor gets a logarithmic axis
FEW_POINTS = 40  # a line of more has no markers, and a smoothed course over it if it is noisy
_COUNTED = ("samples", "steps", "bytes")


@dataclass(frozen=True)
class Axis:
    """The quantity along an axis.

    Attributes:
        label: the quantity.
        unit: of its values; empty where it has none.
        log: whether the axis is logarithmic.
        low, high: ends of the axis; None: they follow the values.
        falls: whether values fall to the right, or upwards.
    """

    label: str
    unit: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    falls: bool = False

    def __str__(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def is_counted(self) -> bool:
        """Whether its numbers are large counts: 20k is easier to read than 20,000."""
        return any(word in (self.unit or self.label) for word in _COUNTED)


@dataclass(frozen=True)
class Line:
    """Values over an axis.

    Attributes:
        label: for the legend.
        x, y: equally many values.
        low, high: ends of the error band, of the same length; None: there is no band. Points have error bars instead.
        style: `line`, `dashed` (theory, by convention), `points`, `both` points and line, `faint` (raw values under
            their smoothed course), `steps` (a value holds since the point before), `stack` (an area on top of the
            stacked line before it; unknown values count as 0), `bounds` (points that are lower bounds), `rings` (around
            points of other lines that stand out).
        group: lines of one group have one colour, as measured points and the curve through them; empty: its own.
        name: shown when the line is pointed at; empty: the label.
        dash: a place among the patterns of dashes; None: the pattern of the style.
        optimizer: of the runs behind it, by which it is coloured and a reader can filter; empty: of several, or none.
        batch: the global batch size of the runs behind it, by which a reader can filter; None: of several, or none.

    Raises:
        ValueError: if the lengths differ, or a band has one end.
    """

    label: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    style: Style = "line"
    group: str = ""
    name: str = ""
    dash: int | None = None
    optimizer: str = ""
    batch: int | None = None

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"line {self.label!r}: a band has two ends. Give both low and high, or neither.")
        columns = [self.x, self.y, *(end for end in (self.low, self.high) if end is not None)]
        if len(lengths := {len(column) for column in columns}) > 1:
            raise ValueError(f"line {self.label!r}: its columns have {sorted(lengths)} values. They need equally many.")

    @property
    def series(self) -> str:
        """All lines of one series have one colour."""
        return self.group or self.optimizer or self.label

    @property
    def is_points(self) -> bool:
        """Whether it is drawn as points alone."""
        return self.style in ("points", "bounds", "rings")


@dataclass(frozen=True)
class Diagram:
    """Lines over two axes.

    Attributes:
        name: of its file, and of its key in W&B: letters, digits, `_`.
        title: names the content.
        x, y: the axes.
        lines: in the order of the legend.
        caption: how to read it; may be empty.
        samples_per_epoch: of a figure over samples seen, which then has a second axis, in epochs; None: it has none.

    Raises:
        ValueError: if stacked lines differ in x.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    caption: str = ""
    samples_per_epoch: float | None = None

    def __post_init__(self) -> None:
        if len({tuple(line.x) for line in self.lines if line.style == "stack"}) > 1:
            raise ValueError(f"diagram {self.name!r}: its stacked lines differ in x. Give all of them the same x.")

    def record(self) -> dict[str, Any]:
        """Ready for JSON; NaN and infinity become None.

        >>> line = Line("loss", [1, 2], [0.5, float("inf")])
        >>> Diagram("loss", "A run", Axis("step"), Axis("loss"), (line,)).record()["lines"][0]["y"]
        [0.5, None]
        """
        return {"type": "diagram"} | json_values(dataclasses.asdict(self))


@dataclass(frozen=True)
class Trail:
    """A path over a surface, from its first point to its last; a single point is a place on it."""

    label: str
    x: Numbers
    y: Numbers

    @property
    def series(self) -> str:
        """All trails of one series have one colour."""
        return self.label


@dataclass(frozen=True)
class Surface:
    """A quantity over two axes: a heat map, or a landscape of contours with trails over it.

    Attributes:
        name: of its file, and of its key in W&B.
        title: names the content.
        x, y: the axes.
        z: the quantity; `log` colours its logarithm.
        columns: places along x.
        rows: places along y.
        values: `len(rows)` lists of `len(columns)` values; None where there is none.
        trails: paths over it.
        contours: lines of equal height instead of cells.
        caption: how to read it; may be empty.
        row_names: shown instead of numbers along y, which then falls: the first row is at the top.
        square: whether a unit of x is as long as one of y, as of two weights.

    Raises:
        ValueError: if `values` is not rows x columns, or `row_names` are not as many as rows.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    z: Axis
    columns: Numbers
    rows: Numbers
    values: Sequence[Numbers]
    trails: tuple[Trail, ...] = ()
    contours: bool = False
    caption: str = ""
    row_names: Sequence[str] = ()
    square: bool = False

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.rows) or widths - {len(self.columns)}:
            raise ValueError(
                f"surface {self.name!r}: {len(self.values)} rows of {sorted(widths)} values for {len(self.rows)} rows "
                f"of {len(self.columns)}. Give one value per cell."
            )
        if self.row_names and len(self.row_names) != len(self.rows):
            raise ValueError(f"surface {self.name!r}: {len(self.row_names)} names for {len(self.rows)} rows.")

    def record(self) -> dict[str, Any]:
        """Ready for JSON; NaN and infinity become None."""
        return {"type": "surface"} | json_values(dataclasses.asdict(self))


def numbers(values: Iterable[float]) -> Numbers:
    """Plain numbers of any sequence or array; None for NaN and infinity.

    >>> numbers([1, float("nan")])
    [1.0, None]
    """
    return [float(value) if math.isfinite(value) else None for value in values]


def is_wide(values: Iterable[float | None]) -> bool:
    """Whether values are positive and span more than a factor of 50: they belong on a logarithmic axis.

    >>> is_wide([1.0, None, 60.0]), is_wide([0.0, 60.0]), is_wide([])
    (True, False, False)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > _LOG_RANGE * min(known)

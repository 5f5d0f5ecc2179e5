"""One description of a figure, drawn in several ways: as a PNG, in an interactive page, in W&B.

Plain values with a JSON form: a record on disk keeps its figures, and whoever reads it draws them as he likes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["line", "dashed", "points", "both"]
Numbers = Sequence[float | None]  # None: not known, or not finite


@dataclass(frozen=True)
class Axis:
    """What is drawn along an axis.

    Attributes:
        label: the quantity.
        unit: of its values; empty where it has none.
        log: whether the axis is logarithmic.
    """

    label: str
    unit: str = ""
    log: bool = False

    def __str__(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def is_counted(self) -> bool:
        """Whether its numbers are large counts, of which 20k is read more easily than 20,000."""
        return any(word in (self.unit or self.label) for word in ("samples", "steps"))


@dataclass(frozen=True)
class Line:
    """Values over an axis.

    Attributes:
        label: for the legend.
        x, y: of one length.
        low, high: ends of the error band, of the same length; None: there is no band.
        style: `line`, `dashed` (theory, by convention), `points`, or `both` points and line.
        group: lines of one group have one colour, as measured points and the curve through them; empty: its own.

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

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"line {self.label!r}: a band has two ends. Give both low and high, or neither.")
        columns = [self.x, self.y, *(end for end in (self.low, self.high) if end is not None)]
        if len(lengths := {len(column) for column in columns}) > 1:
            raise ValueError(f"line {self.label!r}: its columns have {sorted(lengths)} values. They need equally many.")

    @property
    def series(self) -> str:
        """What has one colour."""
        return self.group or self.label


@dataclass(frozen=True)
class Diagram:
    """Lines over two axes.

    Attributes:
        name: of its file, and of its key in W&B: letters, digits, `_`.
        title: what is shown.
        x, y: the axes.
        lines: in the order of the legend.
        caption: how to read it; may be empty.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    caption: str = ""

    def record(self) -> dict[str, Any]:
        """Ready for JSON; what is not finite is None.

        >>> line = Line("loss", [1, 2], [0.5, float("inf")])
        >>> Diagram("loss", "A run", Axis("step"), Axis("loss"), (line,)).record()["lines"][0]["y"]
        [0.5, None]
        """
        return {"type": "diagram"} | _plain(dataclasses.asdict(self))


@dataclass(frozen=True)
class Trail:
    """A path over a surface, from its first point to its last."""

    label: str
    x: Numbers
    y: Numbers

    @property
    def series(self) -> str:
        """What has one colour."""
        return self.label


@dataclass(frozen=True)
class Surface:
    """A quantity over two axes: a heat map, or a landscape of contours with trails over it.

    Attributes:
        name: of its file, and of its key in W&B.
        title: what is shown.
        x, y: the axes.
        z: the quantity; `log` colours its logarithm.
        columns: places along x.
        rows: places along y.
        values: `len(rows)` lists of `len(columns)` values; None where there is none.
        trails: paths over it.
        contours: lines of equal height instead of cells.
        caption: how to read it; may be empty.

    Raises:
        ValueError: if `values` is not rows x columns.
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

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.rows) or widths - {len(self.columns)}:
            raise ValueError(
                f"surface {self.name!r}: {len(self.values)} rows of {sorted(widths)} values for {len(self.rows)} rows "
                f"of {len(self.columns)}. Give one value per cell."
            )

    def record(self) -> dict[str, Any]:
        """Ready for JSON; what is not finite is None."""
        return {"type": "surface"} | _plain(dataclasses.asdict(self))


NUM_COLOURS = 7  # of the palettes


def colour_places(figures: Sequence[Diagram | Surface], fixed: Sequence[str] = ()) -> list[dict[str, int]]:
    """For each of several figures that stand together: series -> place of its colour in a palette.

    A series has one colour in all of them, unless they have more series than there are colours: then each begins anew.

    Args:
        figures: side by side, or below each other.
        fixed: series whose places are their own wherever they are drawn, in lower case: optimizers, on a page.

    >>> first, second = (Diagram("d", "", Axis("x"), Axis("y"), tuple(Line(label, [1], [1]) for label in labels))
    ...                  for labels in (("train", "LAMB"), ("validation", "train")))
    >>> colour_places([first, second], fixed=["sgd", "lamb"])
    [{'train': 0, 'LAMB': 1}, {'validation': 2, 'train': 0}]
    """
    own = [list(dict.fromkeys(one.series for one in _drawn(figure))) for figure in figures]
    together = list(dict.fromkeys(name for names in own for name in names))
    if len(together) > NUM_COLOURS:
        return [_places(names, fixed) for names in own]
    places = _places(together, fixed)
    return [{name: places[name] for name in names} for names in own]


def _drawn(figure: Diagram | Surface) -> Sequence[Line | Trail]:
    return figure.lines if isinstance(figure, Diagram) else figure.trails


def _places(names: Sequence[str], fixed: Sequence[str]) -> dict[str, int]:
    known = {name: fixed.index(name.lower()) for name in names if name.lower() in fixed}
    free = (place for place in itertools.count() if place not in known.values())
    return {name: known[name] if name in known else next(free) for name in names}


def legend_labels(figure: Diagram) -> list[str]:
    """Of a legend without repetitions: points of a series whose curve is named have no entry of their own."""
    named = {line.group for line in figure.lines if line.style != "points" and line.label != line.group}
    return list(dict.fromkeys(line.label for line in figure.lines if line.label not in named))


def from_record(record: dict[str, Any]) -> Diagram | Surface:
    """The figure that `record()` was made of, with None for what was not finite.

    >>> figure = Diagram("loss", "A run", Axis("step"), Axis("loss"), (Line("train", [1], [0.5]),))
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
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of a figure: {type(error).__name__}: {error}") from error
    raise ValueError(f"no record of a figure: its type is {kind!r}, not diagram or surface.")


def _plain(value: Any) -> Any:
    """Lists and numbers as JSON has them, from tuples, arrays and scalars of numpy."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

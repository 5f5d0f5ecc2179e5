"""Draws figures as PNG files: the one place that knows matplotlib.

Without pyplot: no window, no global state, safe beside a user's own plots.
Colours: Okabe and Ito 2008, distinct for colour-blind readers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from largebatch.records.durable_files import write_whole
from largebatch.records.figures.diagram import Axis, Diagram, Surface
from largebatch.records.figures.figure import Bars, Figure
from largebatch.records.figures.legends import colour_of, colour_places, epoch_ticks, legend_labels, legend_of_all
from largebatch.records.figures.png_marks import draw_bars, draw_line, draw_stack, draw_surface, plain

_DPI = 150
_WIDE_LABEL = 30  # letters: longer ones are one below the other in a legend
_BELOW = -0.17  # of a panel, as a share of its height: where the legend begins
_LETTERS = 130  # of a legend side by side
_LETTERS_PER_INCH, _LINE = 17, 0.17  # of a caption: letters of a line, and its height in inches
_LONG_LABEL = 42  # letters of an axis in one line
_FEW_DECADES = 1000.0  # a logarithmic axis of a smaller range is labelled at 1, 2 and 5
_WRITTEN_OUT = (1e-5, 1e6)  # numbers beyond are powers of ten
_UNITS = {"s": "s", "bytes": "B"}  # written at every tick, with a prefix: 2 ms, 64 kB
_MOST_NAMES = 60  # of the rows of a map


def draw_png(figure: Figure, folder: str | Path) -> Path:
    """Draw FOLDER/NAME.png; returns its path."""
    return draw_panels([figure], Path(folder) / f"{figure.name}.png")


def draw_panels(figures: Sequence[Figure], path: str | Path, *, title: str = "") -> Path:
    """Draw several figures side by side into one PNG; returns its path.

    Args:
        figures: from left to right, three to a row; four make two rows.
        path: the file; its folder is created if need be.
        title: above all of them.
    """
    drawn = io.BytesIO()
    sheet_of(figures, title).savefig(drawn, format="png", dpi=_DPI)
    return write_whole(Path(path), drawn.getvalue())


def sheet_of(figures: Sequence[Figure], title: str = "") -> matplotlib.figure.Figure:
    """The figures as panels of matplotlib."""
    columns = 2 if len(figures) == 4 else min(len(figures), 3)
    heights = [max(map(_height, figures[first : first + columns])) for first in range(0, len(figures), columns)]
    size = (max(7.0, 5.2 * columns), sum(heights))
    sheet = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = np.asarray(sheet.subplots(len(heights), columns, squeeze=False, height_ratios=heights)).ravel()
    for panel in panels[len(figures) :]:
        panel.set_visible(False)
    shared = legend_of_all(figures)
    legend: dict[str, Artist] = {}
    for number, (panel, figure, places) in enumerate(zip(panels, figures, colour_places(figures), strict=False)):
        handles = _draw(panel, figure, places)
        if title != figure.title:
            panel.set_title(plain(figure.title), fontsize=10, wrap=True)
        entries = {label: handles[label] for label in legend_labels(figure)}
        if shared is None and (len(entries) > 1 or (isinstance(figure, Surface) and entries)):
            # Below: inside it would lie on bands, and searching a free place is slow.
            _legend(panel, entries, most=2, loc="upper center", bbox_to_anchor=(0.5, _BELOW))
        elif number == shared:
            legend = entries
    if title:
        sheet.suptitle(plain(title), fontweight="bold")
    _add_foot(sheet, " ".join(dict.fromkeys(figure.caption for figure in figures if figure.caption)), legend)
    return sheet


def _add_foot(sheet: matplotlib.figure.Figure, captions: str, legend: Mapping[str, Artist]) -> None:
    """The captions at the bottom, above them the legend of all panels, above both the panels."""
    lines = textwrap.wrap(captions, int(_LETTERS_PER_INCH * sheet.get_figwidth()))
    sheet.text(0.5, 0.01, plain("\n".join(lines)), ha="center", va="bottom", fontsize=8)
    share = _LINE / sheet.get_figheight()
    below = share * len(lines)
    if legend:
        side_by_side = max(1, _LETTERS // (max(map(len, legend)) + 6))
        num_rows = _legend(sheet, legend, most=side_by_side, loc="lower center", bbox_to_anchor=(0.5, below))
        below += share * (num_rows + 1.5)
    engine = sheet.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, below, 1, 1 - below))  # type: ignore[call-arg]


def _height(figure: Figure) -> float:
    """The height in inches."""
    if isinstance(figure, Surface) and figure.row_names:
        return max(4.8, 2.2 + 0.16 * min(len(figure.row_names), _MOST_NAMES))
    return 6.2 if isinstance(figure, Surface) and figure.square else 4.8


def _legend(place: Axes | matplotlib.figure.Figure, entries: Mapping[str, Artist], *, most: int, **where: Any) -> int:
    """Entries in at most so many columns; returns the number of rows."""
    columns = 1 if max(map(len, entries)) > _WIDE_LABEL else min(most, len(entries))
    labels = [plain(label) for label in entries]
    place.legend(list(entries.values()), labels, frameon=False, fontsize=8, ncols=columns, **where)
    return -(-len(entries) // columns)


def _draw(ax: Axes, figure: Figure, places: dict[str, int]) -> dict[str, Artist]:
    """Draw a figure into a panel; returns the entries of its legend, by label."""
    colours = {series: colour_of(place) for series, place in places.items()}
    if isinstance(figure, Diagram):
        handles = draw_stack(ax, figure.lines, colours)
        for line in figure.lines:
            if line.style != "stack":
                handles.setdefault(line.label, draw_line(ax, line, colours[line.series], places[line.series]))
    elif isinstance(figure, Surface):
        handles = draw_surface(ax, figure, colours)
    else:
        handles = draw_bars(ax, figure, colours)
    for along, axis in ((ax.xaxis, figure.x), (ax.yaxis, figure.y)):
        _style(along, axis)
    if isinstance(figure, Surface):
        if figure.row_names:
            _name_rows(ax, np.array(figure.rows, dtype=float), figure.row_names, size=7)
            ax.invert_yaxis()
        return handles
    if isinstance(figure, Bars):
        _name_rows(ax, np.arange(len(figure.rows)), figure.rows, size=9)
    ax.grid(alpha=0.25, axis="both" if isinstance(figure, Diagram) else "x")
    ax.spines[["right", "top"]].set_visible(False)
    if isinstance(figure, Diagram) and figure.samples_per_epoch:
        _add_epochs(ax, figure.samples_per_epoch)
    return handles


def _add_epochs(ax: Axes, samples_per_epoch: float) -> None:
    ticks = epoch_ticks(ax.get_xlim()[1], samples_per_epoch)
    top = ax.secondary_xaxis("top")
    top.set_xticks(list(ticks), list(ticks.values()), fontsize=9)
    top.set_xlabel("epochs", fontsize=9)


def _name_rows(ax: Axes, places: np.ndarray, names: Sequence[str], *, size: int) -> None:
    """Names in place of numbers; of many rows every n-th."""
    every = -(-len(names) // _MOST_NAMES)
    ax.set_yticks(places[::every], [plain(name) for name in names[::every]])
    ax.tick_params(axis="y", labelsize=size, length=0)


def _style(along: XAxis | YAxis, axis: Axis) -> None:
    """Scale, ends and labels; before the names of rows, which replace the numbers."""
    ax, is_x = along.axes, along.axis_name == "x"
    assert isinstance(ax, Axes)
    (ax.set_xscale if is_x else ax.set_yscale)("log" if axis.log else "linear")
    label = axis.label if axis.unit in _UNITS else str(axis)
    along.set_label_text(plain("\n".join(textwrap.wrap(label, _LONG_LABEL))))
    if axis.low is not None or axis.high is not None:
        limits = ax.get_xlim() if is_x else ax.get_ylim()
        ends = [end if end is not None else limit for end, limit in zip((axis.low, axis.high), limits, strict=True)]
        if ends[0] < ends[1]:
            (ax.set_xlim if is_x else ax.set_ylim)(*ends)
    if axis.log:
        _style_log(along, counted=axis.is_counted)
    largest = max(map(abs, along.get_view_interval()))
    if axis.unit in _UNITS:
        along.set_major_formatter(EngFormatter(unit=_UNITS[axis.unit]))
    elif axis.is_counted and not axis.log and largest >= 1000:
        along.set_major_formatter(EngFormatter(sep=""))
    if axis.falls:
        (ax.invert_xaxis if is_x else ax.invert_yaxis)()


def _style_log(along: XAxis | YAxis, *, counted: bool) -> None:
    """Labels at 1, 2 and 5 of a small range, numbers written out, thousands of counts as k."""
    low, high = sorted(map(abs, along.get_view_interval()))
    along.set_minor_formatter(NullFormatter())  # its labels run into each other
    if high < _FEW_DECADES * low:
        along.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)))
    if counted and low >= 1:
        along.set_major_formatter(EngFormatter(sep=""))
    elif low >= _WRITTEN_OUT[0] and high <= _WRITTEN_OUT[1]:
        along.set_major_formatter(FuncFormatter("{:g}".format))

"""Draws the figures of `diagram.py` as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.records.figures.diagram import (
    NUM_COLOURS,
    Axis,
    Diagram,
    Line,
    Numbers,
    Surface,
    colour_places,
    legend_labels,
)
from largebatch.records.figures.drawing import BLACK, MANY, PALETTE, plain, save, style_log

_LINES = {"line": ("-", None), "dashed": ("--", None), "points": ("none", "o"), "both": ("-", "o")}
_LEVELS = 18  # contours of a landscape
_WIDE_LABEL = 30  # letters: longer ones are one below the other in a legend
_BELOW = -0.17  # of a panel, as a share of its height: where the legend begins


def draw_png(figure: Diagram | Surface, folder: str | Path) -> Path:
    """Draw FOLDER/NAME.png; returns its path."""
    return draw_panels([figure], Path(folder) / f"{figure.name}.png")


def draw_panels(figures: Sequence[Diagram | Surface], path: str | Path, *, title: str = "") -> Path:
    """Draw several figures side by side into one PNG; returns its path.

    Args:
        figures: from left to right, three to a row.
        path: the file.
        title: over all of them.
    """
    columns = min(len(figures), 3)
    rows = -(-len(figures) // columns)
    sheet = Figure(figsize=(max(7.0, 5.2 * columns), 4.8 * rows), layout="constrained")
    panels = np.asarray(sheet.subplots(rows, columns, squeeze=False)).ravel()
    for panel in panels[len(figures) :]:
        panel.set_visible(False)
    for panel, figure, places in zip(panels, figures, colour_places(figures), strict=False):
        colours = {series: PALETTE[place % NUM_COLOURS] for series, place in places.items()}
        if isinstance(figure, Diagram):
            _draw_lines(panel, figure, colours)
        else:
            _draw_surface(panel, figure, colours)
        panel.set_title(plain(figure.title), fontsize=10, wrap=True)
    if title:
        sheet.suptitle(plain(title), fontweight="bold")
    if captions := " ".join(figure.caption for figure in figures if figure.caption):
        sheet.supxlabel(plain(captions), fontsize=8, wrap=True)
    return save(sheet, Path(path))


def _draw_lines(ax: Axes, figure: Diagram, colours: Mapping[str, str]) -> None:
    for line in figure.lines:
        _draw_line(ax, line, colours[line.series])
    _style(ax, figure.x, figure.y)
    ax.grid(alpha=0.25)
    ax.spines[["right", "top"]].set_visible(False)
    labels = [plain(label) for label in legend_labels(figure)]
    if len(labels) > 1:
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        columns = 1 if max(map(len, labels)) > _WIDE_LABEL else 2
        # Below: inside it would lie on bands, and searching a free place is slow.
        ax.legend([handles[one] for one in labels], labels, frameon=False, fontsize=8, ncols=columns,
                  loc="upper center", bbox_to_anchor=(0.5, _BELOW))  # fmt: skip


def _draw_line(ax: Axes, line: Line, colour: str) -> None:
    x, y = _floats(line.x), _floats(line.y)
    dashes, marker = _LINES[line.style]
    if marker and len(x) > MANY and line.style == "both":
        marker = None
    ax.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=4, linewidth=1.5, label=plain(line.label))
    if line.low is None or line.high is None:
        return
    low, high = _floats(line.low), _floats(line.high)
    if line.style == "points":
        ax.errorbar(x, y, np.maximum([y - low, high - y], 0), color=colour, linestyle="none", capsize=2.5)
    else:
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _draw_surface(ax: Axes, figure: Surface, colours: Mapping[str, str]) -> None:
    values = np.array([_floats(row) for row in figure.values])
    columns, rows = _floats(figure.columns), _floats(figure.rows)
    norm = _norm(values, figure.z)
    drawn: ScalarMappable
    if figure.contours:
        finite = values[np.isfinite(values)]
        spaced = np.geomspace if isinstance(norm, LogNorm) else np.linspace
        drawn = ax.contourf(columns, rows, values, spaced(finite.min(), finite.max(), _LEVELS), norm=norm, alpha=0.85)
    else:
        drawn = ax.pcolormesh(_edges(columns, figure.x), _edges(rows, figure.y), values, norm=norm)
    assert ax.figure is not None
    ax.figure.colorbar(drawn, ax=ax, label=plain(str(figure.z)), format="%.3g")
    for trail in figure.trails:
        x, y = _floats(trail.x), _floats(trail.y)
        ax.plot(x, y, color=BLACK, linewidth=2.2)
        marker = "o" if len(x) <= MANY else None
        ax.plot(x, y, color=colours[trail.series], linewidth=1.3, marker=marker, markersize=3, label=plain(trail.label))
    _style(ax, figure.x, figure.y)
    if figure.trails:
        ax.legend(fontsize=8)


def _edges(centres: np.ndarray, axis: Axis) -> np.ndarray:
    """Borders of the cells around ascending centres: halfway, as the axis is scaled; a single cell is one wide."""
    scaled = np.log2(centres) if axis.log else centres
    half = np.diff(scaled) / 2 if len(scaled) > 1 else np.array([0.5])
    edges = np.concatenate([scaled[:1] - half[:1], scaled[:-1] + half[: len(scaled) - 1], scaled[-1:] + half[-1:]])
    return np.exp2(edges) if axis.log else edges


def _norm(values: np.ndarray, axis: Axis) -> Normalize:
    finite = values[np.isfinite(values)]
    return LogNorm() if axis.log and len(finite) and finite.min() > 0 else Normalize()


def _style(ax: Axes, x: Axis, y: Axis) -> None:
    ax.set_xlabel(plain(str(x)))
    ax.set_ylabel(plain(str(y)))
    ax.set_xscale("log" if x.log else "linear")
    ax.set_yscale("log" if y.log else "linear")
    for along, axis in ((ax.xaxis, x), (ax.yaxis, y)):
        if axis.log:
            style_log(along, counted=axis.is_counted)
        elif along is ax.xaxis and max(map(abs, along.get_view_interval())) >= 1000:
            along.set_major_formatter(EngFormatter(sep=""))


def _floats(values: Numbers) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)

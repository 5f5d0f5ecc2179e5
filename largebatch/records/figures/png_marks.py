"""The marks of figures, drawn into a panel of matplotlib: lines, stacks, surfaces, bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator, NullFormatter

from largebatch.records.figures.diagram import FEW_POINTS, Axis, Line, Numbers, Surface
from largebatch.records.figures.figure import Bars
from largebatch.records.figures.legends import dash_of

_LINES = {
    "line": ("-", None), "dashed": ("--", None), "points": ("none", "o"), "both": ("-", "o"), "faint": ("-", None),
    "steps": ("-", None), "bounds": ("none", "^"), "rings": ("none", "o"),
}  # fmt: skip
_HOLLOW, _RING = {"bounds": 7.0, "rings": 11.0}, "#7A7F85"
_DASHES = ("-", ":", "-.", (0, (5, 1)), (0, (5, 1, 1, 1)))  # once the colours are used up
_FEW_DECADES, _TWO_POWERS = 100, 100  # a scale of less is labelled at 1, 2 and 5; contours of more at powers of ten
_LEVELS, _LABELLED = 18, 3  # contours of a landscape; every n-th has a number


def plain(text: str) -> str:
    """A text in which a dollar is a dollar, not the start of a formula."""
    return text.replace("$", r"\$")


def draw_line(ax: Axes, line: Line, colour: str, place: int) -> Artist:
    """A line with its band, or points with their error bars; returns the line."""
    x, y = _floats(line.x), _floats(line.y)
    dashes: Any
    dashes, marker = _LINES[line.style]
    if dashes == "-":
        dashes = _DASHES[(dash_of(place) if line.dash is None else line.dash) % len(_DASHES)]
    if marker and len(x) > FEW_POINTS and line.style == "both":
        marker = None
    look: dict[str, Any] = {"alpha": 0.28, "linewidth": 0.7} if line.style == "faint" else {"linewidth": 1.5}
    if line.style == "steps":
        look["drawstyle"] = "steps-pre"
    if line.style in _HOLLOW:
        look |= {"markerfacecolor": "none", "markeredgewidth": 1.5}
        colour = _RING if line.style == "rings" else colour
    size = _HOLLOW.get(line.style, 4)
    (drawn,) = ax.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=size, **look)
    if line.low is not None and line.high is not None:
        low, high = _floats(line.low), _floats(line.high)
        if line.is_points:
            ax.errorbar(x, y, np.maximum([y - low, high - y], 0), color=colour, linestyle="none", capsize=2.5)
        else:
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    return drawn


def draw_stack(ax: Axes, lines: Sequence[Line], colours: Mapping[str, str]) -> dict[str, Artist]:
    """The stacked lines among `lines` as areas on top of each other, by label."""
    areas: dict[str, Artist] = {}
    base: np.ndarray | None = None
    for line in lines:
        if line.style != "stack":
            continue
        base = np.zeros(len(line.y)) if base is None else base
        top = base + np.nan_to_num(_floats(line.y))
        areas[line.label] = ax.fill_between(
            _floats(line.x), base, top, color=colours[line.series], alpha=0.85, linewidth=0
        )
        base = top
    return areas


def draw_surface(ax: Axes, figure: Surface, colours: Mapping[str, str]) -> dict[str, Artist]:
    """Cells or contours, their scale of colours, and trails, which are returned by label."""
    values = np.array([_floats(row) for row in figure.values])
    columns, rows = _floats(figure.columns), _floats(figure.rows)
    norm, finite = _norm(values, figure.z), values[np.isfinite(values)]
    drawn: ScalarMappable
    if figure.contours and len(finite) and finite.min() < finite.max():
        levels, named = _levels(float(finite.min()), float(finite.max()), log=isinstance(norm, LogNorm))
        drawn = ax.contourf(columns, rows, values, levels, norm=norm, alpha=0.85)
        lines = ax.contour(columns, rows, values, named, colors="white", linewidths=0.6)
        ax.clabel(lines, fontsize=7, fmt="%.3g")
    else:
        named = None
        drawn = ax.pcolormesh(_edges(columns, figure.x), _edges(rows, figure.y), values, norm=norm)
    if figure.square:
        ax.set_aspect("equal")
    assert ax.figure is not None
    bar = ax.figure.colorbar(drawn, ax=ax, label=plain(str(figure.z)), format="%.3g", ticks=named)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if named is None and isinstance(norm, LogNorm) and len(finite):
        few = finite.max() < _FEW_DECADES * finite.min()
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    handles: dict[str, Artist] = {}
    for trail in figure.trails:
        x, y = _floats(trail.x), _floats(trail.y)
        ax.plot(x, y, color="#000000", linewidth=2.2)
        marker = "o" if len(x) <= FEW_POINTS else None
        size = 3 if len(x) > 1 else 8
        (handles[trail.label],) = ax.plot(
            x, y, color=colours[trail.series], linewidth=1.3, marker=marker, markersize=size, markeredgecolor="white",
            markeredgewidth=0.0 if len(x) > 1 else 1.5,
        )  # fmt: skip
    return handles


def _levels(low: float, high: float, *, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Levels of contours, and those that have a number: powers of ten where there are two or more."""
    if log and high >= _TWO_POWERS * low:
        first, last = np.log10(low), np.log10(high)
        inside = 10.0 ** (np.arange(np.ceil(4 * first), np.floor(4 * last) + 1) / 4)  # four per power of ten
        named = 10.0 ** np.arange(np.ceil(first), np.floor(last) + 1)
        return np.unique(np.concatenate([[low], inside, [high]])), named
    levels = (np.geomspace if log else np.linspace)(low, high, _LEVELS)
    return levels, levels[::_LABELLED]


def draw_bars(ax: Axes, figure: Bars, colours: Mapping[str, str]) -> dict[str, Artist]:
    """Rows from the top, each with its bars; returns the first bar of every label."""
    handles: dict[str, Artist] = {}
    before = None
    for bar in figure.bars:
        if figure.connected and before is not None:
            ax.plot([before.end] * 2, [before.row, bar.row], color="#000000", linewidth=0.6, linestyle=":", zorder=1)
        colour = colours[bar.series]
        if bar.start == bar.end:
            ax.plot(bar.end, bar.row, "o", color=colour, markersize=7)
        else:
            drawn = ax.barh(bar.row, bar.end - bar.start, left=bar.start, height=0.6, color=colour, alpha=0.8)
            handles.setdefault(bar.label, drawn.patches[0])
        right = max(bar.start, bar.end)
        if bar.low is not None and bar.high is not None:
            ax.plot([bar.low, bar.high], [bar.row] * 2, color="#000000", linewidth=1.4, marker="|", markersize=7)
            right = max(right, bar.high)
        ax.annotate(plain(bar.text), (right, bar.row), xytext=(8, -3), textcoords="offset points", fontsize=8)
        before = bar
    ax.set_ylim(len(figure.rows) - 0.5, -0.5)
    if figure.connected:
        ax.use_sticky_edges = False  # a bar is no border
        ax.margins(x=0.18)
    return handles


def _edges(centres: np.ndarray, axis: Axis) -> np.ndarray:
    """Borders of the cells around ascending centres: halfway, as the axis is scaled; a single cell is one wide."""
    scaled = np.log2(centres) if axis.log else centres
    half = np.diff(scaled) / 2 if len(scaled) > 1 else np.array([0.5])
    edges = np.concatenate([scaled[:1] - half[:1], scaled[:-1] + half[: len(scaled) - 1], scaled[-1:] + half[-1:]])
    return np.exp2(edges) if axis.log else edges


def _norm(values: np.ndarray, axis: Axis) -> Normalize:
    finite = values[np.isfinite(values)]
    return LogNorm() if axis.log and len(finite) and finite.min() > 0 else Normalize()


def _floats(values: Numbers) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)

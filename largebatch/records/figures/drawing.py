"""What every plot shares: colours, axes, lines of a run's rows.

Figures are made without pyplot: no window, no global state, safe beside a user's own plots.
Colours: Okabe and Ito 2008, distinct for colour-blind readers.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.durable_files import write_whole
from largebatch.records.rows.columns import Column, Columns

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
MANY = 40  # a line of more points has no markers, and a smoothed line over it if it is noisy
_DPI = 150
_FEW_DECADES = 300.0  # a logarithmic axis of a smaller range is labelled at 1, 2 and 5
_WRITTEN_OUT = (1e-5, 1e6)  # numbers beyond are powers of ten
_LOG_RANGE = 50  # a positive quantity that spans more than this factor gets a logarithmic axis


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as a PNG; the folder is created if need be."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    return write_whole(path, drawn.getvalue())


def plain(text: str) -> str:
    """A text in which a dollar is a dollar, not the start of a formula."""
    return text.replace("$", r"\$")


def style_axes(ax: Axes, *, ylabel: str, xlabel: str = "samples seen") -> None:
    """Labels, a light grid, thousands as k and millions as M."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.25)
    ax.spines["right"].set_visible(False)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def add_epochs(ax: Axes, columns: Columns) -> None:
    """A second x axis on top, in epochs, where the rows know the epoch."""
    x, epoch = columns.series("epoch")
    known = (epoch > 0) & (x > 0)
    if not known.any():
        ax.spines["top"].set_visible(False)
        return
    per_epoch = float(x[known][-1] / epoch[known][-1])
    top = ax.secondary_xaxis(
        "top", functions=(lambda v: np.asarray(v) / per_epoch, lambda v: np.asarray(v) * per_epoch)
    )
    top.set_xlabel("epochs", fontsize=9)
    top.xaxis.set_major_locator(MaxNLocator(6))
    top.tick_params(labelsize=9)


def draw_line(ax: Axes, columns: Columns, key: str, *, label: str, colour: str) -> None:
    """The values of `key`, with markers if they are few; nothing where there is no data."""
    if not columns.has(key):
        return
    x, y = columns.series(key)
    marker = "o" if len(x) <= MANY else None
    ax.plot(x, y, color=colour, label=label + _lost(columns.column(key)), marker=marker, markersize=3.5, linewidth=1.6)


def draw_noisy_line(ax: Axes, columns: Columns, key: str, *, label: str, colour: str) -> None:
    """The values of `key` thin, and their smoothed course over them; like `draw_line` if they are few.

    Where values are left out, the thin line goes from the least to the greatest of each stretch.
    """
    column = columns.column(key)
    x, y = column.samples, column.values
    if len(x) <= MANY:
        draw_line(ax, columns, key, label=label, colour=colour)
        return
    thin = (x, y) if column.every == 1 else (np.repeat(x, 2), np.column_stack([column.low, column.high]).ravel())
    ax.plot(*thin, color=colour, alpha=0.28, linewidth=0.7)
    smoothed = smooth(column.means, len(x) / MANY)
    ax.plot(x, smoothed, color=colour, label=f"{label}, smoothed{_lost(column)}", linewidth=1.6)


def log_if_wide(ax: Axes) -> None:
    """A logarithmic y axis if all that is drawn is positive and spans more than a factor of 50."""
    y = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    y = y[np.isfinite(y)]
    if y.min() > 0 and y.max() > _LOG_RANGE * y.min():
        ax.set_yscale("log")
        style_log(ax.yaxis)


def style_log(along: XAxis | YAxis, *, counted: bool = False) -> None:
    """Labels of a logarithmic axis: at 1, 2 and 5 of a small range, numbers written out, thousands of counts as k."""
    low, high = sorted(map(abs, along.get_view_interval()))
    along.set_minor_formatter(NullFormatter())  # its labels run into each other
    if high < _FEW_DECADES * low:
        along.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)))
    if counted and low >= 1:
        along.set_major_formatter(EngFormatter(sep=""))
    elif low >= _WRITTEN_OUT[0] and high <= _WRITTEN_OUT[1]:
        along.set_major_formatter(FuncFormatter("{:g}".format))


def _lost(column: Column) -> str:
    return f" ({column.lost} not finite)" if column.lost else ""

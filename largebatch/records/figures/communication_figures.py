"""Communication over a run, and all-reduces and steps of a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from largebatch.diagnostics import TransferFit
from largebatch.records.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    add_epochs,
    draw_line,
    plain,
    save,
    style_axes,
)
from largebatch.records.rows.columns import Columns

_COLOURS = (BLUE, VERMILLION, SKY, ORANGE)


def communication_figure(columns: Columns, title: str) -> Figure | None:
    """Hidden and exposed communication of a run's steps, and the share of the step; None if it was not measured."""
    if not columns.has("communication/total_s"):
        return None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, total = columns.series("communication/total_s")
    _, exposed = columns.series("communication/exposed_s")
    style_axes(left, ylabel="time per step")
    left.yaxis.set_major_formatter(EngFormatter(unit="s"))
    if len(x) == len(exposed) > 1:
        left.stackplot(x, exposed, total - exposed, colors=[VERMILLION, SKY], alpha=0.85, labels=["exposed", "hidden"])
    else:  # a stack needs two points
        draw_line(left, columns, "communication/exposed_s", label="exposed", colour=VERMILLION)
        draw_line(left, columns, "communication/total_s", label="exposed and hidden", colour=SKY)
    draw_line(left, columns, "communication/predicted_s", label="predicted from latency and bandwidth", colour=BLACK)
    draw_line(
        left, columns, "communication/straggler_wait_s", label="wait of the fastest rank for the slowest", colour=PURPLE
    )
    share_x, share = columns.series("communication/share_of_step")
    style_axes(right, ylabel="exposed communication (% of the step's time)")
    right.plot(share_x, 100 * share, color=GREEN, marker="o", markersize=3.5, linewidth=1.6)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        add_epochs(ax, columns)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{plain(title)}: communication of the gradient", fontweight="bold")
    figure.supxlabel("Exposed: after the last gradient of the slowest rank. Hidden: beside computation.", fontsize=8)
    return figure


def plot_transfer(
    path: str | Path,
    *,
    title: str,
    num_bytes: Sequence[int],
    seconds: Sequence[Sequence[float]],
    fit: TransferFit,
    parts: Sequence[int],
    bars: Mapping[str, Mapping[str, float]],
) -> Path:
    """Draw times of all-reduces against their size with the fitted line, and what a step's time consists of.

    Args:
        path: the picture.
        title: of what.
        num_bytes: sizes of the all-reduces, [n].
        seconds: median, lower and upper quartile of their times, [3][n].
        fit: through the lower quartiles.
        parts: sizes in which a gradient is sent.
        bars: name of a bar -> its parts -> seconds.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    _draw_line_fit(left, num_bytes, seconds, fit, parts)
    _draw_bars(right, bars)
    figure.suptitle(plain(title), fontweight="bold")
    figure.supxlabel(
        "Left: medians with quartiles; the line goes through the lower ones. Right: medians; hidden communication runs "
        "beside computation, and both share the machine.",
        fontsize=8,
    )
    return save(figure, Path(path))


def _draw_line_fit(
    ax: Axes, num_bytes: Sequence[int], seconds: Sequence[Sequence[float]], fit: TransferFit, parts: Sequence[int]
) -> None:
    median, low, high = (np.asarray(values) for values in seconds)
    ax.set_xscale("log")
    ax.set_yscale("log")
    style_axes(ax, ylabel="time of an all-reduce", xlabel="size")
    ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    ax.yaxis.set_major_formatter(EngFormatter(unit="s"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    spread = np.vstack([median - low, high - median])
    ax.errorbar(num_bytes, median, yerr=spread, color=BLUE, marker="o", linestyle="", capsize=2, label="measured")
    x = np.geomspace(min(num_bytes), max(num_bytes), 200)
    line = fit.latency_s + x * fit.s_per_byte
    ax.plot(x[line > 0], line[line > 0], color=VERMILLION, label=_law(fit))
    for number, size in enumerate(sorted(set(parts))):
        ax.axvline(size, color=BLACK, linestyle="--", linewidth=1, label=None if number else _name_of(parts))
    ax.legend(frameon=False, fontsize=9, loc="upper left")


def _law(fit: TransferFit) -> str:
    latency = EngFormatter(unit="s", places=1)(fit.latency_s)
    if fit.bandwidth is None:
        return f"fit: {latency}, bandwidth unknown"
    return f"fit: {latency} + size / ({EngFormatter(unit='B/s', places=1)(fit.bandwidth)})"


def _name_of(parts: Sequence[int]) -> str:
    size = EngFormatter(unit="B", places=1)(sum(parts))
    return f"the gradient, {size}" if len(parts) == 1 else f"the gradient's {len(parts)} parts, together {size}"


def _draw_bars(ax: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    style_axes(ax, ylabel="", xlabel="time")
    ax.xaxis.set_major_formatter(EngFormatter(unit="s"))
    colours: dict[str, str] = {}
    for name, pieces in bars.items():
        left = 0.0
        for piece, length in pieces.items():
            label = None if piece in colours else piece
            colours.setdefault(piece, _COLOURS[len(colours)])
            ax.barh(name, length, left=left, color=colours[piece], label=label)
            left += length
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=9, loc="lower right")

"""Pictures of the gap: what it is made of, and how it differs between batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from largebatch.diagnostics.gap.gap_parts import GapParts
from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.drawing import BLACK, BLUE, GREEN, MANY, PALETTE, VERMILLION, plain, save
from largebatch.records.rows.row_file import Row
from largebatch.records.rows.series import has_data, series

# Global batch size -> rows of every run with it.
Runs = Mapping[int, Sequence[Sequence[Row]]]

_TRAIN_LOSS = "eval/train_loss"
_WIDE = 6  # an axis that spans more than this factor between runs is logarithmic
_CAPTION = (
    "Each bar begins where the one above it ends: from the training samples as the training loss sees them (top) to "
    "the validation samples (bottom).\nOrange makes the model look worse, green better; black: 95 % paired bootstrap "
    "interval of the change. A printed training loss also averages over older weights, which no checkpoint shows."
)


def plot_gap_parts(found: GapParts, folder: str | Path, *, title: str, unit: str) -> Path:
    """Draw `gap_parts.png`: a waterfall of the loss, and one of the error where there are accuracies.

    Args:
        found: the parts.
        folder: where to.
        title: whose gap it is.
        unit: what the mean loss is a mean over.
    """
    return save(gap_parts_figure(found, title=title, unit=unit), Path(folder) / "gap_parts.png")


def gap_parts_figure(found: GapParts, *, title: str, unit: str) -> Figure:
    """Rows from the top: training as printed, a bar for every part, validation."""
    has_accuracy = found.train_accuracy is not None and found.val_accuracy is not None
    figure = Figure(figsize=(12.5 if has_accuracy else 8, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False, sharey=True)[0]
    names = [part.name for part in found.parts]
    losses = [part.loss for part in found.parts]
    _waterfall(axes[0], found.train_loss, found.val_loss, names, losses, ".3g")
    axes[0].set_xlabel(f"loss (mean per {unit})")
    if found.train_accuracy is not None and found.val_accuracy is not None:
        falls = [part.accuracy for part in found.parts]
        _waterfall(axes[1], 1 - found.train_accuracy, 1 - found.val_accuracy, names, falls, ".2%")
        axes[1].set_xlabel(f"error (share of {unit}s that are wrong)")
        axes[1].xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle("what lies between training loss and validation loss", fontweight="bold")
    axes[0].set_title(plain(title), fontsize=8, loc="left", wrap=True)
    figure.supxlabel(_CAPTION, fontsize=8)
    return figure


def _waterfall(
    ax: Axes, start: float, end: float, names: Sequence[str], parts: Sequence[Interval | None], form: str
) -> None:
    """Rows from the top: where it starts, a bar for every part, where it ends."""
    labels = ["training", *names, "validation"]
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.plot([start, end], [0, len(labels) - 1], "o", color=BLUE, markersize=7)
    for value, row in ((start, 0), (end, len(labels) - 1)):
        ax.annotate(f"{value:{form}}", (value, row), xytext=(8, -3), textcoords="offset points", fontsize=9)
    at = start
    for row, part in enumerate(parts, start=1):
        ax.plot([at, at], [row - 1, row], color=BLACK, linewidth=0.6, linestyle=":")
        if part is None:
            ax.annotate("none", (at, row), xytext=(8, -3), textcoords="offset points", fontsize=9, color="#777777")
            continue
        ax.barh(row, part.value, left=at, height=0.55, color=VERMILLION if part.value > 0 else GREEN, alpha=0.75)
        ax.plot([at + part.low, at + part.high], [row, row], color=BLACK, linewidth=1.6, marker="|", markersize=7)
        right = at + max(part.value, part.high, 0)
        ax.annotate(f"{part.value:+{form}}", (right, row), xytext=(8, -3), textcoords="offset points", fontsize=9)
        at += part.value
    ax.plot([at, at], [len(parts), len(parts) + 1], color=BLACK, linewidth=0.6, linestyle=":")
    ax.use_sticky_edges = False  # a bar is no border
    ax.margins(x=0.18)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["right", "top"]].set_visible(False)


def plot_large_batch_gap(runs: Runs, path: str | Path, *, title: str) -> Path:
    """Draw generalization gap and validation of all runs against samples, steps and training loss.

    Args:
        runs: global batch size -> rows of every run with it.
        path: the picture.
        title: what stands above it.
    """
    return save(large_batch_gap_figure(runs, title=title), Path(path))


def large_batch_gap_figure(runs: Runs, *, title: str) -> Figure:
    """Above the generalization gap of each run, below its validation error, or its loss if there is no error."""
    every = [rows for group in runs.values() for rows in group]
    has_error = all(has_data(rows, "eval/val_accuracy") for rows in every)
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharey="row")
    across = {
        "samples_seen": "samples seen",
        "step": "optimizer steps",
        _TRAIN_LOSS: "training loss (evaluated; falls to the right)",
    }
    below = "eval/val_accuracy" if has_error else "eval/val_loss"
    for column, (against, xlabel) in enumerate(across.items()):
        _draw_runs(axes[0, column], runs, against, "gap/loss", is_error=False)
        _draw_runs(axes[1, column], runs, against, below, is_error=has_error)
        for ax in axes[:, column]:
            _style(ax, every, against, xlabel)
    axes[0, 0].set_ylabel("generalization gap\n(validation loss - training loss)")
    axes[1, 0].set_ylabel("validation error (share wrong)" if has_error else "validation loss")
    for ax in axes[0]:
        ax.axhline(0, color=BLACK, linewidth=0.6)
    labels = [f"batch {size:,} ({len(group)} run{'s' if len(group) > 1 else ''})" for size, group in runs.items()]
    handles = [axes[0, 0].plot([], [], color=PALETTE[i % len(PALETTE)], linewidth=2)[0] for i in range(len(runs))]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 6), frameon=False)
    figure.suptitle(plain(title), fontweight="bold")
    axes[0, 0].set_title("one line per run; losses in eval mode, without augmentation", fontsize=8, loc="left")
    axes[0, 2].set_title("only evaluations with a new lowest training loss", fontsize=8, loc="left")
    return figure


def _draw_runs(ax: Axes, runs: Runs, against: str, key: str, *, is_error: bool) -> None:
    """A line per run through its evaluations in their order, a colour per batch size."""
    for number, group in enumerate(runs.values()):
        for rows in group:
            _, x = series([row for row in rows if key in row], against, "step")
            _, y = series([row for row in rows if against in row], key, "step")
            if against == _TRAIN_LOSS:
                is_new = x <= np.fmin.accumulate(x)
                x, y = x[is_new], y[is_new]
            marker = "o" if len(x) <= MANY else None
            colour = PALETTE[number % len(PALETTE)]
            ax.plot(x, 1 - y if is_error else y, color=colour, alpha=0.8, linewidth=1.2, marker=marker, markersize=2.5)


def _style(ax: Axes, every: Sequence[Sequence[Row]], against: str, xlabel: str) -> None:
    ax.set_xlabel(xlabel)
    ax.grid(alpha=0.25)
    ax.spines[["right", "top"]].set_visible(False)
    is_loss = against == _TRAIN_LOSS
    ends = [float(np.nanmin(y) if is_loss else y[-1]) for _, y in (series(rows, against, "step") for rows in every)]
    if min(ends) > 0 and (is_loss or max(ends) > _WIDE * min(ends)):
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if is_loss:
        ax.invert_xaxis()

"""Pictures of a run, from metrics.jsonl alone. A panel without data is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.records.figures.communication_figures import communication_figure
from largebatch.records.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    MANY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    add_epochs,
    draw_line,
    draw_noisy_line,
    log_if_wide,
    plain,
    save,
    style_axes,
)
from largebatch.records.figures.noise_figure import noise_scale_figure
from largebatch.records.figures.sharpness_figure import sharpness_figure
from largebatch.records.rows.columns import Column, Columns
from largebatch.records.rows.series import of_gap

Draw = Callable[[Axes, Columns], None]
_TIME_PARTS = {
    "time/data_s": ("data", ORANGE),
    "time/compute_s": ("compute", BLUE),
    "time/communication_s": ("communication", VERMILLION),
}
_TIME_BINS = 100


def plot_run(columns: Columns, folder: str | Path, title: str) -> list[Path]:
    """Draw training, time and what else was measured into `folder`; returns the paths of those that had data."""
    figures = {
        "training.png": training_figure(columns, title),
        "time.png": time_figure(columns, title),
        "noise_scale.png": noise_scale_figure(columns, title),
        "communication.png": communication_figure(columns, title),
        "sharpness.png": sharpness_figure(columns, title),
    }
    return [save(figure, Path(folder) / name) for name, figure in figures.items() if figure is not None]


def training_figure(columns: Columns, title: str) -> Figure | None:
    """Loss, accuracy, learning rate and gradient norm against the samples seen; None if there is none of them."""
    panels: dict[Draw, tuple[str, ...]] = {
        _draw_loss: ("train/loss", "eval/train_loss", "eval/val_loss"),
        _draw_accuracy: ("eval/train_accuracy", "eval/val_accuracy"),
        _draw_lr: ("train/lr",),
        _draw_grad_norm: ("train/grad_norm",),
    }
    return _run_figure(columns, title, panels)


def time_figure(columns: Columns, title: str) -> Figure | None:
    """The parts of a step's time, stacked, and the throughput; None if neither was measured."""
    return _run_figure(columns, title, {_draw_time: tuple(_TIME_PARTS), _draw_throughput: ("train/samples_per_s",)})


def _run_figure(columns: Columns, title: str, panels: dict[Draw, tuple[str, ...]]) -> Figure | None:
    """One panel for every drawing that has data, in up to two columns."""
    drawings = [draw for draw, keys in panels.items() if any(columns.has(key) for key in keys)]
    if not drawings:
        return None
    width, height = min(len(drawings), 2), (len(drawings) + 1) // 2
    figure = Figure(figsize=(5.8 * width, 3.9 * height + 0.4), layout="constrained")
    figure.suptitle(plain(title), fontsize=13, fontweight="bold")
    for i, draw in enumerate(drawings, start=1):
        ax = figure.add_subplot(height, width, i)
        draw(ax, columns)
        ax.set_xlim(0, columns.samples_seen * 1.02 or 1.0)
        add_epochs(ax, columns)
        if ax.get_legend_handles_labels()[0]:  # where curves of this kind are not; searching a place is slow
            low = draw in (_draw_accuracy, _draw_throughput)
            ax.legend(frameon=False, fontsize=9, loc="lower right" if low else "upper right")
    return figure


def _draw_loss(ax: Axes, columns: Columns) -> None:
    style_axes(ax, ylabel="loss (mean per sample or token)")
    draw_noisy_line(ax, columns, "train/loss", label="training batches", colour=SKY)
    draw_line(ax, columns, "eval/train_loss", label="training set", colour=BLUE)
    draw_line(ax, columns, "eval/val_loss", label="validation set", colour=VERMILLION)
    log_if_wide(ax)


def _draw_accuracy(ax: Axes, columns: Columns) -> None:
    style_axes(ax, ylabel="accuracy (fraction correct)")
    draw_line(ax, columns, "eval/train_accuracy", label="training set", colour=BLUE)
    draw_line(ax, columns, "eval/val_accuracy", label="validation set", colour=VERMILLION)
    (of_train, train), (of_val, val) = (columns.series(f"eval/{which}_accuracy") for which in ("train", "val"))
    x, in_train, in_val = np.intersect1d(of_train, of_val, return_indices=True)
    if len(x):
        label = f"gap{of_gap(columns.is_gap_augmented)}{_last_gap(columns)}"
        ax.fill_between(x, val[in_val], train[in_train], color=BLACK, alpha=0.1, linewidth=0, label=label)


def _last_gap(columns: Columns) -> str:
    x, gap = columns.series("gap/accuracy")
    if not len(x):
        return ""
    error_x, stderr = columns.series("gap/accuracy_stderr")
    error = f" ± {stderr[-1]:.3f}" if len(error_x) and error_x[-1] == x[-1] else ""
    return f", at the end {gap[-1]:.3f}{error}{' (validation is better)' if gap[-1] < 0 else ''}"


def _draw_lr(ax: Axes, columns: Columns) -> None:
    style_axes(ax, ylabel="learning rate")
    x, y = columns.series("train/lr")
    ax.plot(x, y, color=GREEN, linewidth=1.6, marker="o" if len(x) <= MANY else None, markersize=3.5)
    ax.set_ylim(0, np.nanmax(columns.column("train/lr").high) * 1.05 or 1.0)
    _draw_ramp(ax, columns)


def _draw_ramp(ax: Axes, columns: Columns) -> None:
    """The global batch on an axis of its own, in a run in which it changes."""
    x, sizes = columns.series("train/global_batch_size")
    if len(set(sizes)) < 2:
        return
    twin = ax.twinx()
    twin.step(x, sizes, where="pre", color=ORANGE, linewidth=1.6)
    twin.set_ylim(0, sizes.max() * 1.05)
    twin.set_ylabel("global batch (samples, orange)")


def _draw_grad_norm(ax: Axes, columns: Columns) -> None:
    style_axes(ax, ylabel="gradient norm (L2)")
    draw_noisy_line(ax, columns, "train/grad_norm", label="gradient norm", colour=PURPLE)
    log_if_wide(ax)


def _draw_throughput(ax: Axes, columns: Columns) -> None:
    style_axes(ax, ylabel="throughput (samples/s)")
    draw_noisy_line(ax, columns, "train/samples_per_s", label="throughput", colour=GREEN)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_time(ax: Axes, columns: Columns) -> None:
    """Means over at most 100 bins, so that the stack is legible; one slow step does not flatten the others."""
    style_axes(ax, ylabel="time per step")
    ax.yaxis.set_major_formatter(EngFormatter(unit="s"))
    x, stack = _time_bins(columns)
    shown = [i for i in range(len(stack)) if stack[i].sum() > 0.005 * stack.sum()]
    names, colours = zip(*_TIME_PARTS.values(), ("other", "#BBBBBB"), strict=True)
    ax.stackplot(x, stack[shown], labels=[names[i] for i in shown], colors=[colours[i] for i in shown], alpha=0.85)
    height = stack.sum(axis=0)
    typical, highest = float(np.median(height)), float(height.max())
    cut = highest > 2 * typical > 0
    ax.set_ylim(0, (1.5 * typical if cut else 1.3 * highest) or 1.0)
    if cut:
        ax.set_ylabel(f"time per step (mean; peak of {EngFormatter(unit='s', places=1)(highest)} cut off)")


def _time_bins(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """(x[bins], seconds[4, bins]): data, compute, communication, and the rest of the step."""
    parts = [columns.column(key) for key in _TIME_PARTS]
    x = np.unique(np.concatenate([part.samples for part in parts]))
    table = np.column_stack([x, *(_at(part, x, absent=0.0) for part in parts)])
    whole = _at(columns.column("time/step_s"), x, absent=np.nan)
    other = np.maximum(whole - table[:, 1:].sum(axis=1), 0.0)
    table = np.column_stack([table, other])
    table = np.where(np.isfinite(table), table, 0.0)
    table = np.array([part.mean(axis=0) for part in np.array_split(table, min(len(table), _TIME_BINS))])
    if len(table) == 1:  # a stack needs two points
        table = np.vstack([table, table])
        table[0, 0] = 0.0
    return table[:, 0], table[:, 1:].T


def _at(column: Column, x: np.ndarray, *, absent: float) -> np.ndarray:
    """The means at `x`; of a long column each point stands for the stretch up to it."""
    if not len(column.samples):
        return np.full(len(x), absent)
    places = np.minimum(np.searchsorted(column.samples, x), len(column.samples) - 1)
    known = column.samples[places] == x if column.every == 1 else True
    return np.where(known, column.means[places], absent)

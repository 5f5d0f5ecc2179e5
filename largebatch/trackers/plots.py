"""Pictures of a run and of several, from the rows of metrics.jsonl alone. A panel without data is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.trackers.communication_figures import communication_figure
from largebatch.trackers.drawing import (
    BLACK,
    BLUE,
    GREEN,
    MANY,
    ORANGE,
    PALETTE,
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
from largebatch.trackers.noise_figure import noise_scale_figure
from largebatch.trackers.series import has_data, of_gap, series
from largebatch.trackers.sharpness_figure import sharpness_figure
from largebatch.trackers.tracker import Row

Draw = Callable[[Axes, Sequence[Row]], None]
Runs = Sequence[tuple[str, Sequence[Row]]]
_TIME_PARTS = {
    "time/data_s": ("data", ORANGE),
    "time/compute_s": ("compute", BLUE),
    "time/communication_s": ("communication", VERMILLION),
}
_TIME_BINS = 100
_COMPARED = {
    "eval/val_accuracy": "validation error (fraction wrong)",  # 0.99 and 0.98 look alike, 0.01 and 0.02 do not
    "eval/val_loss": "validation loss (mean per sample or token)",
}
_AGAINST = {"samples_seen": "samples seen", "step": "optimizer steps"}
_LOG_STEPS = 6  # runs that differ by this factor in steps get a logarithmic axis of steps


def plot_run(rows: Sequence[Row], folder: str | Path, title: str) -> list[Path]:
    """Draw training, time and what else was measured into `folder`; returns the paths of those that had data."""
    figures = {
        "training.png": training_figure(rows, title),
        "time.png": time_figure(rows, title),
        "noise_scale.png": noise_scale_figure(rows, title),
        "communication.png": communication_figure(rows, title),
        "sharpness.png": sharpness_figure(rows, title),
    }
    return [save(figure, Path(folder) / name) for name, figure in figures.items() if figure is not None]


def plot_comparison(runs: Runs, path: str | Path, title: str) -> Path:
    """Draw validation error and loss of several runs, against samples and against optimizer steps, as a PNG.

    Args:
        runs: (label, rows) of every run. Runs of one label, say its seeds, are one line, their mean, with a band from
            the least to the greatest value.
        path: the picture.
        title: what stands above it.

    Raises ValueError if no run has a validation metric.
    """
    figure = comparison_figure(runs, title)
    if figure is None:
        raise ValueError(
            f"None of the {len(runs)} runs has {' or '.join(_COMPARED)} in its metrics: there is nothing to compare. "
            "Switch evaluation on for these runs."
        )
    return save(figure, Path(path))


def training_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Loss, accuracy, learning rate and gradient norm against the samples seen; None if there is none of them."""
    panels: dict[Draw, tuple[str, ...]] = {
        _draw_loss: ("train/loss", "eval/train_loss", "eval/val_loss"),
        _draw_accuracy: ("eval/train_accuracy", "eval/val_accuracy"),
        _draw_lr: ("train/lr",),
        _draw_grad_norm: ("train/grad_norm",),
    }
    return _run_figure(rows, title, panels)


def time_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """The parts of a step's time, stacked, and the throughput; None if neither was measured."""
    return _run_figure(rows, title, {_draw_time: tuple(_TIME_PARTS), _draw_throughput: ("train/samples_per_s",)})


def comparison_figure(runs: Runs, title: str) -> Figure | None:
    """The figure of `plot_comparison`; None if there is nothing to compare."""
    labels = list(dict.fromkeys(label for label, _ in runs))
    metrics = [key for key in _COMPARED if any(has_data(rows, key) for _, rows in runs)]
    if not metrics:
        return None
    figure = Figure(figsize=(11, 3.7 * len(metrics) + 1.1), layout="constrained")
    figure.suptitle(plain(title), fontsize=13, fontweight="bold")
    axes = figure.subplots(len(metrics), len(_AGAINST), squeeze=False, sharey="row")
    for key, row_of_axes in zip(metrics, axes, strict=True):
        for against, ax in zip(_AGAINST, row_of_axes, strict=True):
            for i, label in enumerate(labels):
                same = [series(rows, key, against) for name, rows in runs if name == label]
                if key == "eval/val_accuracy":
                    same = [(x, 1 - y) for x, y in same]
                _draw_group(ax, same, colour=PALETTE[i % len(PALETTE)], dashed=i >= len(PALETTE))
            style_axes(ax, ylabel=_COMPARED[key] if against == "samples_seen" else "", xlabel=_AGAINST[against])
            ax.spines["top"].set_visible(False)
            log_if_wide(ax)
            if against == "step" and _steps_differ_widely(runs):
                ax.set_xscale("log")
                ax.set_xlabel(f"{_AGAINST[against]} (logarithmic)")
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles = [axes[0, 0].plot([], [], color=PALETTE[i % len(PALETTE)], linestyle="--" if i >= len(PALETTE) else "-",
                               linewidth=2.2)[0] for i in range(len(labels))]  # fmt: skip
    columns = max(1, min(len(labels), 100 // (max(map(len, labels)) + 6)))  # about 100 letters side by side
    figure.legend(handles, [plain(label) for label in labels], loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _run_figure(rows: Sequence[Row], title: str, panels: dict[Draw, tuple[str, ...]]) -> Figure | None:
    """One panel for every drawing that has data, in up to two columns."""
    drawings = [draw for draw, keys in panels.items() if any(has_data(rows, key) for key in keys)]
    if not drawings:
        return None
    columns, height = min(len(drawings), 2), (len(drawings) + 1) // 2
    figure = Figure(figsize=(5.8 * columns, 3.9 * height + 0.4), layout="constrained")
    figure.suptitle(plain(title), fontsize=13, fontweight="bold")
    end = max(float(row["samples_seen"]) for row in rows if "samples_seen" in row)
    for i, draw in enumerate(drawings, start=1):
        ax = figure.add_subplot(height, columns, i)
        draw(ax, rows)
        ax.set_xlim(0, end * 1.02 or 1.0)
        add_epochs(ax, rows)
        if ax.get_legend_handles_labels()[0]:  # where curves of this kind are not; searching a place is slow
            low = draw in (_draw_accuracy, _draw_throughput)
            ax.legend(frameon=False, fontsize=9, loc="lower right" if low else "upper right")
    return figure


def _draw_loss(ax: Axes, rows: Sequence[Row]) -> None:
    style_axes(ax, ylabel="loss (mean per sample or token)")
    draw_noisy_line(ax, rows, "train/loss", label="training batches", colour=SKY)
    draw_line(ax, rows, "eval/train_loss", label="training set", colour=BLUE)
    draw_line(ax, rows, "eval/val_loss", label="validation set", colour=VERMILLION)
    log_if_wide(ax)


def _draw_accuracy(ax: Axes, rows: Sequence[Row]) -> None:
    style_axes(ax, ylabel="accuracy (fraction correct)")
    draw_line(ax, rows, "eval/train_accuracy", label="training set", colour=BLUE)
    draw_line(ax, rows, "eval/val_accuracy", label="validation set", colour=VERMILLION)
    if both := [row for row in rows if "eval/train_accuracy" in row and "eval/val_accuracy" in row]:
        x, train = series(both, "eval/train_accuracy")
        _, val = series(both, "eval/val_accuracy")
        ax.fill_between(x, val, train, color=BLACK, alpha=0.1, linewidth=0, label=f"gap{of_gap(rows)}{_last_gap(rows)}")


def _last_gap(rows: Sequence[Row]) -> str:
    for row in reversed(rows):
        if "gap/accuracy" in row:
            error = f" ± {float(row['gap/accuracy_stderr']):.3f}" if "gap/accuracy_stderr" in row else ""
            sign = " (validation is better)" if float(row["gap/accuracy"]) < 0 else ""
            return f", at the end {float(row['gap/accuracy']):.3f}{error}{sign}"
    return ""


def _draw_lr(ax: Axes, rows: Sequence[Row]) -> None:
    style_axes(ax, ylabel="learning rate")
    x, y = series(rows, "train/lr")
    ax.plot(x, y, color=GREEN, linewidth=1.6, marker="o" if len(x) <= MANY else None, markersize=3.5)
    ax.set_ylim(0, np.nanmax(y) * 1.05 or 1.0)
    _draw_ramp(ax, rows)


def _draw_ramp(ax: Axes, rows: Sequence[Row]) -> None:
    """The global batch on an axis of its own, in a run in which it changes."""
    x, sizes = series(rows, "train/global_batch_size")
    if len(set(sizes)) < 2:
        return
    twin = ax.twinx()
    twin.step(x, sizes, where="pre", color=ORANGE, linewidth=1.6)
    twin.set_ylim(0, sizes.max() * 1.05)
    twin.set_ylabel("global batch (samples, orange)")


def _draw_grad_norm(ax: Axes, rows: Sequence[Row]) -> None:
    style_axes(ax, ylabel="gradient norm (L2)")
    draw_noisy_line(ax, rows, "train/grad_norm", label="gradient norm", colour=PURPLE)
    log_if_wide(ax)


def _draw_throughput(ax: Axes, rows: Sequence[Row]) -> None:
    style_axes(ax, ylabel="throughput (samples/s)")
    draw_noisy_line(ax, rows, "train/samples_per_s", label="throughput", colour=GREEN)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_time(ax: Axes, rows: Sequence[Row]) -> None:
    """Means over at most 100 bins, so that the stack is legible; one slow step does not flatten the others."""
    style_axes(ax, ylabel="time per step")
    ax.yaxis.set_major_formatter(EngFormatter(unit="s"))
    x, stack = _time_bins(rows)
    shown = [i for i in range(len(stack)) if stack[i].sum() > 0.005 * stack.sum()]
    names, colours = zip(*_TIME_PARTS.values(), ("other", "#BBBBBB"), strict=True)
    ax.stackplot(x, stack[shown], labels=[names[i] for i in shown], colors=[colours[i] for i in shown], alpha=0.85)
    height = stack.sum(axis=0)
    typical, highest = float(np.median(height)), float(height.max())
    cut = highest > 2 * typical > 0
    ax.set_ylim(0, (1.5 * typical if cut else 1.3 * highest) or 1.0)
    if cut:
        ax.set_ylabel(f"time per step (mean; peak of {EngFormatter(unit='s', places=1)(highest)} cut off)")


def _time_bins(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(x[bins], seconds[4, bins]): data, compute, communication, and the rest of the step."""
    measured = [row for row in rows if "samples_seen" in row and any(key in row for key in _TIME_PARTS)]
    measured.sort(key=lambda row: float(row["samples_seen"]))
    table = np.array([[float(row.get(key, 0)) for key in ("samples_seen", *_TIME_PARTS)] for row in measured])
    whole = np.array([float(row.get("time/step_s", np.nan)) for row in measured])
    other = np.maximum(whole - table[:, 1:].sum(axis=1), 0.0)
    table = np.column_stack([table, other])
    table = np.where(np.isfinite(table), table, 0.0)
    table = np.array([part.mean(axis=0) for part in np.array_split(table, min(len(table), _TIME_BINS))])
    if len(table) == 1:  # a stack needs two points
        table = np.vstack([table, table])
        table[0, 0] = 0.0
    return table[:, 0], table[:, 1:].T


def _draw_group(ax: Axes, runs: list[tuple[np.ndarray, np.ndarray]], *, colour: str, dashed: bool) -> None:
    """The mean of the runs and the band between the least and the greatest, where all of them have values."""
    runs = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in runs if np.isfinite(y).any()]
    if not runs:
        return
    start, end = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    grid = np.unique(np.concatenate([x for x, _ in runs]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.array([np.interp(grid, x, y) for x, y in runs])
    marker, style = "o" if len(grid) <= MANY else None, "--" if dashed else "-"
    ax.plot(grid, values.mean(axis=0), color=colour, linestyle=style, marker=marker, markersize=3.5, linewidth=1.8)
    if len(runs) > 1:
        ax.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _steps_differ_widely(runs: Runs) -> bool:
    last = [max((float(row["step"]) for row in rows if "step" in row), default=0.0) for _, rows in runs]
    last = [steps for steps in last if steps > 0]
    return bool(last) and max(last) >= _LOG_STEPS * min(last)

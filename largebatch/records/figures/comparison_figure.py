"""A picture of several runs beside each other, from their evaluations. A panel without data is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.records.figures.drawing import MANY, PALETTE, log_if_wide, plain, save, style_axes
from largebatch.records.rows.row_file import Row
from largebatch.records.rows.series import has_data, series

Runs = Sequence[tuple[str, Sequence[Row]]]
_COMPARED = {
    "eval/val_accuracy": "validation error (fraction wrong)",  # 0.99 and 0.98 look alike, 0.01 and 0.02 do not
    "eval/val_loss": "validation loss (mean per sample or token)",
}
_AGAINST = {"samples_seen": "samples seen", "step": "optimizer steps"}
_LOG_STEPS = 6  # runs that differ by this factor in steps get a logarithmic axis of steps


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

"""The gradient noise scale over a run, beside the batch size that the run used."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from largebatch.trackers.drawing import BLACK, BLUE, add_epochs, style_axes
from largebatch.trackers.series import has_data, series
from largebatch.trackers.tracker import Row


def noise_scale_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Noise scale with its 95 % interval, and the global batch, in samples; None if it was never known."""
    if not has_data(rows, "noise_scale/value"):
        return None
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.add_subplot()
    style_axes(ax, ylabel="samples (logarithmic)")
    x, low = series(rows, "noise_scale/low")
    _, high = series(rows, "noise_scale/high")
    _, value = series(rows, "noise_scale/value")
    ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    ax.plot(x, value, color=BLUE, linewidth=1.6, label="gradient noise scale")
    steps, batch = series(rows, "train/global_batch_size")
    ax.step(steps, batch, where="pre", color=BLACK, linewidth=1.2, linestyle="--", label="global batch")
    ax.set_yscale("log")
    ax.set_xlabel("samples seen")
    add_epochs(ax, rows)
    ax.legend(frameon=False)
    figure.suptitle(f"{title}: gradient noise scale", fontweight="bold")
    figure.supxlabel("Left out where there is not enough evidence. An order of magnitude, not a recipe.", fontsize=8)
    return figure

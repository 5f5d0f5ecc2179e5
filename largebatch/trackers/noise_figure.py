"""The gradient noise scale over a run, beside the batch size that the run used."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from largebatch.trackers.drawing import BLACK, BLUE, PALETTE, add_epochs, plain, style_axes, style_log
from largebatch.trackers.series import has_data, series
from largebatch.trackers.tracker import Row

_GROUP_LINES = [(dash, colour) for dash in ("-", ":", "-.") for colour in PALETTE if colour not in (BLACK, BLUE)]


def noise_scale_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Noise scale with its 95 % interval, groups of parameters as thin lines, and the global batch, all in samples.

    None if no noise scale was ever known.
    """
    groups = [name for name in _groups(rows) if has_data(rows, f"noise_scale/{name}/value")]
    if not has_data(rows, "noise_scale/value") and not groups:
        return None
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.add_subplot()
    style_axes(ax, ylabel="samples (logarithmic)")
    x, low = series(rows, "noise_scale/low")
    _, high = series(rows, "noise_scale/high")
    _, value = series(rows, "noise_scale/value")
    ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    ax.plot(x, value, color=BLUE, linewidth=1.6, label="gradient noise scale")
    for name, (dash, colour) in zip(groups, itertools.cycle(_GROUP_LINES), strict=False):
        x, value = series(rows, f"noise_scale/{name}/value")
        ax.plot(x, value, color=colour, linestyle=dash, linewidth=1.0, label=plain(name))
    steps, batch = series(rows, "train/global_batch_size")
    ax.step(steps, batch, where="pre", color=BLACK, linewidth=1.2, linestyle="--", label="global batch")
    ax.set_yscale("log")
    style_log(ax.yaxis, counted=True)
    ax.set_xlabel("samples seen")
    add_epochs(ax, rows)
    ax.legend(frameon=False)
    figure.suptitle(f"{title}: gradient noise scale", fontweight="bold")
    figure.supxlabel("Left out where there is not enough evidence. An order of magnitude, not a recipe.", fontsize=8)
    return figure


def _groups(rows: Sequence[Row]) -> list[str]:
    """Names NAME of `noise_scale/NAME/trace`, in the order of the rows."""
    keys = (key.split("/") for row in rows for key in row if key.startswith("noise_scale/"))
    return list(dict.fromkeys(parts[1] for parts in keys if len(parts) == 3))

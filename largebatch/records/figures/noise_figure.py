"""The gradient noise scale over a run, beside the batch size that the run used."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure

from largebatch.records.figures.drawing import BLACK, BLUE, PALETTE, add_epochs, plain, style_axes, style_log
from largebatch.records.rows.columns import Columns

_GROUP_LINES = [(dash, colour) for dash in ("-", ":", "-.") for colour in PALETTE if colour not in (BLACK, BLUE)]


def noise_scale_figure(columns: Columns, title: str) -> Figure | None:
    """Noise scale with its 95 % interval, groups of parameters as thin lines, and the global batch, all in samples.

    None if no noise scale was ever known.
    """
    groups = _groups(columns)
    if not columns.has("noise_scale/b_simple") and not groups:
        return None
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.add_subplot()
    style_axes(ax, ylabel="samples (logarithmic)")
    (x, value), (_, low), (_, high) = (
        columns.series(f"noise_scale/{name}") for name in ("b_simple", "ci_low", "ci_high")
    )
    if len(x) == len(low) == len(high):
        ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
    ax.plot(x, value, color=BLUE, linewidth=1.6, label="gradient noise scale")
    for name, (dash, colour) in zip(groups, itertools.cycle(_GROUP_LINES), strict=False):
        x, value = columns.series(f"noise_scale/{name}/b_simple")
        ax.plot(x, value, color=colour, linestyle=dash, linewidth=1.0, label=plain(name))
    steps, batch = columns.series("train/global_batch_size")
    ax.step(steps, batch, where="pre", color=BLACK, linewidth=1.2, linestyle="--", label="global batch")
    ax.set_yscale("log")
    style_log(ax.yaxis, counted=True)
    ax.set_xlabel("samples seen")
    add_epochs(ax, columns)
    ax.legend(frameon=False)
    figure.suptitle(f"{title}: gradient noise scale", fontweight="bold")
    figure.supxlabel("Left out where there is not enough evidence. An order of magnitude, not a recipe.", fontsize=8)
    return figure


def _groups(columns: Columns) -> list[str]:
    """Names NAME of `noise_scale/NAME/b_simple`, in the order of the rows."""
    names = (name.split("/") for name in columns.by_name)
    return [parts[1] for parts in names if len(parts) == 3 and (parts[0], parts[2]) == ("noise_scale", "b_simple")]

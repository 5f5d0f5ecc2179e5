"""The sharpness of a run over its samples."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.records.figures.drawing import BLUE, GREEN, PURPLE, VERMILLION, add_epochs, draw_line, plain, style_axes
from largebatch.records.rows.columns import Columns

_PANELS = (
    ("lambda_max", "largest Hessian eigenvalue", BLUE),
    ("trace", "trace of the Hessian", GREEN),
    ("m_sharpness", "m-sharpness (rise of the loss)", PURPLE),
)


def sharpness_figure(columns: Columns, title: str) -> Figure | None:
    """Eigenvalue beside 2 / learning rate, trace and m-sharpness with standard errors; None if never measured."""
    if not columns.has("sharpness/lambda_max"):
        return None
    figure = Figure(figsize=(5.2 * len(_PANELS), 4.3), layout="constrained")
    figure.suptitle(plain(f"{title}: sharpness on a fixed training subset"), fontsize=13, fontweight="bold")
    for number, (name, label, colour) in enumerate(_PANELS, start=1):
        ax = figure.add_subplot(1, len(_PANELS), number)
        style_axes(ax, ylabel=label)
        draw_line(ax, columns, f"sharpness/{name}", label=label, colour=colour)
        if not columns.has(f"sharpness/{name}"):
            continue
        x, y = columns.series(f"sharpness/{name}")
        _, error = columns.series(f"sharpness/{name}_stderr")
        if len(error) == len(x):
            ax.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0, label="± standard error")
        if name == "lambda_max":
            _draw_stability_limit(ax, columns, highest=float(np.nanmax(y)))
        ax.set_ylim(bottom=min(0.0, float(np.nanmin(y))))
        add_epochs(ax, columns)
        ax.legend(frameon=False, fontsize=9)
    return figure


def _draw_stability_limit(ax: Axes, columns: Columns, *, highest: float) -> None:
    """2 / learning rate, as far as it is near enough to be seen beside the eigenvalues."""
    x, lr = columns.series("train/lr")
    with np.errstate(divide="ignore"):
        limit = 2 / lr
    near = np.where(limit < 3 * highest, limit, np.nan)
    if np.isfinite(near).any():
        ax.plot(x, near, color=VERMILLION, linestyle="--", linewidth=1.2, label="2 / learning rate")

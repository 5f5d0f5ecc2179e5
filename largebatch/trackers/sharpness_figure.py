"""The sharpness of a run over its samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.trackers.drawing import BLUE, GREEN, PURPLE, VERMILLION, add_epochs, draw_line, plain, style_axes
from largebatch.trackers.series import has_data, series
from largebatch.trackers.tracker import Row

_PANELS = (
    ("lambda_max", "largest Hessian eigenvalue", BLUE),
    ("trace", "trace of the Hessian", GREEN),
    ("m_sharpness", "m-sharpness (rise of the loss)", PURPLE),
)


def sharpness_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Eigenvalue beside 2 / learning rate, trace and m-sharpness with standard errors; None if never measured."""
    if not has_data(rows, "sharpness/lambda_max"):
        return None
    figure = Figure(figsize=(5.2 * len(_PANELS), 4.3), layout="constrained")
    figure.suptitle(plain(f"{title}: sharpness on a fixed training subset"), fontsize=13, fontweight="bold")
    for number, (name, label, colour) in enumerate(_PANELS, start=1):
        ax = figure.add_subplot(1, len(_PANELS), number)
        style_axes(ax, ylabel=label)
        draw_line(ax, rows, f"sharpness/{name}", label=label, colour=colour)
        x, y = series(rows, f"sharpness/{name}")
        with_error = [row for row in rows if f"sharpness/{name}_stderr" in row]
        if len(with_error) == len(x):
            _, error = series(with_error, f"sharpness/{name}_stderr")
            ax.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0, label="± standard error")
        if name == "lambda_max":
            _draw_stability_limit(ax, rows, highest=float(np.nanmax(y)))
        ax.set_ylim(bottom=min(0.0, float(np.nanmin(y))))
        add_epochs(ax, rows)
        ax.legend(frameon=False, fontsize=9)
    return figure


def _draw_stability_limit(ax: Axes, rows: Sequence[Row], *, highest: float) -> None:
    """2 / learning rate, as far as it is near enough to be seen beside the eigenvalues."""
    x, lr = series(rows, "train/lr")
    with np.errstate(divide="ignore"):
        limit = 2 / lr
    near = np.where(limit < 3 * highest, limit, np.nan)
    if np.isfinite(near).any():
        ax.plot(x, near, color=VERMILLION, linestyle="--", linewidth=1.2, label="2 / learning rate")

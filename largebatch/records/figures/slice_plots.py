"""Pictures of cuts through a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure

from largebatch.records.figures.drawing import BLUE, VERMILLION, plain, save

_WIDE = 50  # losses that span more than this factor get a logarithmic scale


class Slices(Protocol):
    """Losses at `line_positions`, and at `plane_positions` squared; empty: not measured."""

    @property
    def line_positions(self) -> list[float]:
        """Along the first direction."""

    @property
    def line(self) -> list[float]:
        """Losses there."""

    @property
    def plane_positions(self) -> list[float]:
        """Along both directions."""

    @property
    def plane(self) -> list[list[float]]:
        """A row of losses for every position along the second direction."""


def plot_slices(slices: Slices, folder: str | Path, *, title: str, unit: str) -> list[Path]:
    """Draw `slice_1d.png` and `slice_2d.png`; returns the paths of those that had data.

    Args:
        slices: what was measured.
        folder: where to.
        title: whose loss it is.
        unit: what the mean loss is a mean over.
    """
    figures = {"slice_1d.png": line_figure(slices, title, unit), "slice_2d.png": plane_figure(slices, title, unit)}
    return [save(figure, Path(folder) / name) for name, figure in figures.items() if figure is not None]


def line_figure(slices: Slices, title: str, unit: str) -> Figure | None:
    """Loss along one direction; None without a finite loss."""
    losses = _finite(slices.line)
    if not np.isfinite(losses).any():
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(slices.line_positions, losses, color=BLUE, marker="o", markersize=3)
    ax.axvline(0, color=VERMILLION, linestyle="--", linewidth=1, label="the weights")
    if _is_wide(losses):
        ax.set_yscale("log")
    ax.set_xlabel("distance along a random direction (1: as long as the filter)")
    ax.set_ylabel(f"loss (mean per {unit})")
    ax.grid(alpha=0.25)
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(frameon=False)
    _head(figure, "loss along a filter-normalised direction", title)
    return figure


def plane_figure(slices: Slices, title: str, unit: str) -> Figure | None:
    """Loss over a plane as a coloured map with contours; None without a finite loss, or with a single point."""
    losses, positions = _finite(slices.plane), slices.plane_positions
    if len(positions) < 2 or not np.isfinite(losses).any():
        return None
    figure = Figure(figsize=(7, 6), layout="constrained")
    ax = figure.add_subplot()
    wide = _is_wide(losses)
    shown = np.ma.masked_invalid(np.log10(losses) if wide else losses)
    mesh = ax.pcolormesh(positions, positions, shown, cmap="viridis", shading="nearest")
    if shown.min() < shown.max():
        lines = ax.contour(positions, positions, shown, levels=10, colors="white", linewidths=0.8)
        ax.clabel(lines, fontsize=7)
    ax.plot(0, 0, marker="+", color=VERMILLION, markersize=12, markeredgewidth=2, linestyle="none", label="the weights")
    ax.set_xlabel("distance along the first direction (1: as long as the filter)")
    ax.set_ylabel("distance along the second direction")
    ax.set_aspect("equal")
    ax.legend(loc="upper right")
    quantity = f"loss (mean per {unit})"
    figure.colorbar(mesh, ax=ax, label=f"log10 of the {quantity}" if wide else quantity)
    _head(figure, "loss over two random filter-normalised directions", title)
    return figure


def _head(figure: Figure, what: str, title: str) -> None:
    figure.suptitle(what, fontweight="bold")
    figure.axes[0].set_title(plain(title), fontsize=8, wrap=True)


def _finite(losses: object) -> np.ndarray:
    values = np.array(losses, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _is_wide(losses: np.ndarray) -> bool:
    least, most = float(np.nanmin(losses)), float(np.nanmax(losses))
    return least > 0 and most > _WIDE * least

"""The variance of mini-batch gradients over the batch size, beside the 1/B law."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.records.figures.drawing import BLACK, BLUE, VERMILLION, plain, save

_LEAST_FACTOR = 0.02  # without replacement the curve falls to 0, which no logarithmic axis has: it ends here


class Point(Protocol):
    """A measured variance."""

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def variance(self) -> float:
        """Of the mean gradient of B samples."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %; None: not drawn."""

    @property
    def theory(self) -> float:
        """What the law predicts."""


class Slope(Protocol):
    """Of log variance over log B."""

    @property
    def value(self) -> float:
        """The law has -1."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""


class Curve(Protocol):
    """Measured variances for one way to draw."""

    @property
    def points(self) -> Sequence[Point]:
        """Ascending in B."""

    @property
    def replacement(self) -> bool:
        """Whether a batch may hold a sample twice."""

    @property
    def slope(self) -> Slope | None:
        """None: not known."""


class Noise(Protocol):
    """What the theory needs."""

    @property
    def num_samples(self) -> int:
        """D."""

    @property
    def covariance_trace(self) -> float:
        """tr(Sigma)."""


class Variances(Protocol):
    """Both curves and their theory."""

    @property
    def noise(self) -> Noise:
        """Of the set that batches are drawn from."""

    @property
    def with_replacement(self) -> Curve:
        """Batches of independent draws."""

    @property
    def without_replacement(self) -> Curve:
        """Batches that hold no sample twice."""


def plot_variance(found: Variances, folder: str | Path, *, title: str) -> Path:
    """Draw `variance.png` into `folder`; returns its path.

    Args:
        found: what was measured.
        folder: where to.
        title: whose gradients they are.
    """
    return save(variance_figure(found, title), Path(folder) / "variance.png")


def variance_figure(found: Variances, title: str) -> Figure:
    """Measured points with their bands beside the theory on two log axes; below, measured over theory."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_theory(ax, found)
    for curve, drawn, style in (
        (found.with_replacement, "with replacement", {"color": BLUE, "marker": "o"}),
        (found.without_replacement, "without", {"color": VERMILLION, "marker": "s", "markerfacecolor": "white"}),
    ):
        shown = [point for point in curve.points if point.interval is not None]
        _draw_points(ax, shown, [1.0] * len(shown), f"measured, drawn {drawn}{_slope_text(curve)}", style)
        _draw_points(below, shown, [point.theory for point in shown], "", style)
    ax.set_yscale("log")
    ax.set_ylabel("gradient variance $|g_B - G|^2$ (mean, summed over parameters)")
    ax.legend(frameon=False, fontsize=9, loc="lower left")
    ax.set_title(plain(title), fontsize=8, wrap=True)
    below.axhline(1, color=BLACK, linewidth=1)
    below.set_xscale("log")
    below.xaxis.set_major_formatter(EngFormatter(sep=""))
    below.set_xlabel("batch size B (samples)")
    below.set_ylabel("measured / theory")
    for each in (ax, below):
        each.grid(alpha=0.25)
        each.spines[["right", "top"]].set_visible(False)
    figure.suptitle("gradient variance against batch size", fontweight="bold")
    figure.supxlabel(
        "Bands: 95 %. Independent draws follow the 1/B law. Without replacement the noise ends with the set: the batch "
        "of all D samples has none.",
        fontsize=8,
    )
    return figure


def _draw_theory(ax: Axes, found: Variances) -> None:
    count, trace = found.noise.num_samples, found.noise.covariance_trace
    sizes = [point.batch_size for point in found.with_replacement.points]
    law = np.geomspace(sizes[0], sizes[-1], 200)
    ax.plot(law, trace / law, color=BLUE, linewidth=1.2, label=f"theory T/B, T = tr(Sigma) = {trace:.3g}")
    left = (count - law) / (count - 1)
    seen = left > _LEAST_FACTOR
    label = f"theory T/B (D-B)/(D-1), D = {count} samples"
    ax.plot(law[seen], (trace / law * left)[seen], color=VERMILLION, linewidth=1.2, linestyle="--", label=label)


def _draw_points(ax: Axes, shown: list[Point], scale: list[float], label: str, style: dict[str, Any]) -> None:
    if not shown:
        return
    rows = [(point.batch_size, point.variance, *(point.interval or ())) for point in shown]
    sizes, values, low, high = np.array(rows, dtype=float).T / np.array([np.ones(len(rows)), *[scale] * 3])
    ax.fill_between(sizes, low, high, color=style["color"], alpha=0.2, linewidth=0)
    errors = np.array([values - low, high - values])
    ax.errorbar(sizes, values, errors, markersize=5, linestyle="none", capsize=2.5, elinewidth=1, label=label, **style)


def _slope_text(curve: Curve) -> str:
    if curve.slope is None:
        return ""
    low, high = curve.slope.interval
    corrected = "" if curve.replacement else " over (D-B)/(D-1)"
    return f": slope{corrected} {curve.slope.value:.3f} ({low:.3f} to {high:.3f})"

"""Pictures of a run, a comparison, and of what was measured."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largebatch.records.figures.communication_figures import plot_transfer
    from largebatch.records.figures.comparison_figure import plot_comparison
    from largebatch.records.figures.gap_figures import plot_gap_parts, plot_large_batch_gap
    from largebatch.records.figures.heat_map import plot_layers
    from largebatch.records.figures.plots import plot_run
    from largebatch.records.figures.slice_plots import plot_slices
    from largebatch.records.figures.variance_plot import plot_variance

__all__ = [
    "plot_comparison",
    "plot_gap_parts",
    "plot_large_batch_gap",
    "plot_layers",
    "plot_run",
    "plot_slices",
    "plot_transfer",
    "plot_variance",
]
_PLACES = {
    "plot_run": "plots",
    "plot_comparison": "comparison_figure",
    "plot_layers": "heat_map",
    "plot_slices": "slice_plots",
    "plot_variance": "variance_plot",
    "plot_transfer": "communication_figures",
    "plot_gap_parts": "gap_figures",
    "plot_large_batch_gap": "gap_figures",
}


def __getattr__(name: str) -> Any:  # matplotlib is loaded when something is drawn
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

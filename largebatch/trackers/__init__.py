"""Where a run's metrics go: metrics.jsonl (the record of truth), the console, W&B, TensorBoard, and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from largebatch.trackers.charts import default_charts
from largebatch.trackers.console import ProgressLine, print_plan, print_summary, print_table
from largebatch.trackers.jsonl import JsonlTracker, set_stale_rows_aside
from largebatch.trackers.row_file import read_metrics, torn_lines
from largebatch.trackers.tensorboard import TensorBoardTracker
from largebatch.trackers.tracker import Problems, Row, Tracker
from largebatch.trackers.wandb import WandbTracker
from largebatch.trackers.wandb_settings import PUBLIC_SERVER, key_source, mode_of, naming_problems

if TYPE_CHECKING:
    from largebatch.trackers.communication_figures import plot_transfer
    from largebatch.trackers.comparison_figure import plot_comparison
    from largebatch.trackers.gap_figures import plot_gap_parts, plot_large_batch_gap
    from largebatch.trackers.heat_map import plot_layers
    from largebatch.trackers.plots import plot_run
    from largebatch.trackers.slice_plots import plot_slices
    from largebatch.trackers.variance_plot import plot_variance

__all__ = [
    "PUBLIC_SERVER",
    "JsonlTracker",
    "Problems",
    "ProgressLine",
    "Row",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "default_charts",
    "key_source",
    "mode_of",
    "naming_problems",
    "plot_comparison",
    "plot_gap_parts",
    "plot_large_batch_gap",
    "plot_layers",
    "plot_run",
    "plot_slices",
    "plot_transfer",
    "plot_variance",
    "print_plan",
    "print_summary",
    "print_table",
    "read_metrics",
    "set_stale_rows_aside",
    "torn_lines",
]


def __getattr__(name: str) -> Any:
    if name == "plot_run":  # matplotlib is loaded when something is drawn
        from largebatch.trackers import plots

        return plots.plot_run
    if name == "plot_comparison":
        from largebatch.trackers import comparison_figure

        return comparison_figure.plot_comparison
    if name == "plot_layers":
        from largebatch.trackers import heat_map

        return heat_map.plot_layers
    if name == "plot_slices":
        from largebatch.trackers import slice_plots

        return slice_plots.plot_slices
    if name == "plot_variance":
        from largebatch.trackers import variance_plot

        return variance_plot.plot_variance
    if name == "plot_transfer":
        from largebatch.trackers import communication_figures

        return communication_figures.plot_transfer
    if name in ("plot_gap_parts", "plot_large_batch_gap"):
        from largebatch.trackers import gap_figures

        return getattr(gap_figures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

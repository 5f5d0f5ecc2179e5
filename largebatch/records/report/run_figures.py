"""Figures of runs over their course, by section of the page: of one run its own, of several one line per run.

Of several optimizers each has its colour, and batch sizes differ in their dashes; of one, batch sizes have colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from largebatch.records.figures.diagram import Axis, Diagram, Surface, is_wide
from largebatch.records.figures.layer_maps import layer_maps
from largebatch.records.figures.run_figures import BANDS_OF_ERRORS, BANDS_OF_LONG_RUNS, metric_line, run_figures
from largebatch.records.figures.run_metrics import (
    COMMUNICATION,
    NOISE,
    SHARPNESS,
    TIME,
    TRAINING,
    Metric,
    RunFigure,
    compared_metrics,
)
from largebatch.records.report.evidence import RunRecord

# Picture -> section of the page.
SECTIONS = {TRAINING: "training", NOISE: "noise", TIME: "time", COMMUNICATION: "time", SHARPNESS: "curvature"}
_SAMPLES = Axis("samples seen", "samples")
_MOST_POINTS = 12_000  # of a figure: more are slow on a phone
_FEWEST, _MOST = 30, 400  # of a line
_BANDS = 6  # more bands cover each other
MOST_SHOWN = 8  # runs of a task that are shown by themselves, too


def run_label(run: RunRecord) -> str:
    """The name of a line in legends: runs of one label are replicates, or differ in settings."""
    return f"batch {run.global_batch_size:,}{'+' if run.is_ramped else ''}, {run.optimizer}"


def curves(runs: Sequence[RunRecord]) -> dict[str, list[Diagram]]:
    """Section -> its figures that have data: a line per run and a figure per metric; of a single run its own."""
    found: dict[str, list[Diagram]] = {}
    if len(runs) == 1:
        for picture, figures in run_figures(runs[0].metrics).items():
            found.setdefault(SECTIONS[picture], []).extend(figures)
        return found
    for figure, metric, axis in compared_metrics():
        if drawn := _over_samples(runs, figure, metric, axis):
            found.setdefault(SECTIONS[figure.picture], []).append(drawn)
    return found


def maps_of_layers(runs: Sequence[RunRecord]) -> list[Surface]:
    """Maps of layers over samples, of one run per label and a few at most."""
    one_each = {run_label(run): run for run in runs if run.layers}
    shown = list(one_each.values())[:MOST_SHOWN]
    return [found for run in shown for found in layer_maps(run.layers, title=f"{run.name}, {run_label(run)}")]


def _over_samples(runs: Sequence[RunRecord], figure: RunFigure, metric: Metric, axis: Axis) -> Diagram | None:
    shown = [run for run in runs if run.has(metric.key)]
    if not shown:
        return None
    most = max(_FEWEST, min(_MOST, _MOST_POINTS // len(shown)))
    sizes = sorted({run.global_batch_size for run in runs})
    by_optimizer = len({run.optimizer for run in runs}) > 1
    lines = []
    for run in shown:
        line = metric_line(run.metrics, metric, label=run_label(run), most=most, has_band=len(shown) <= _BANDS)
        assert line is not None
        group, dash = (run.optimizer, sizes.index(run.global_batch_size)) if by_optimizer else ("", None)
        lines.append(replace(line, name=run.name, group=group, dash=dash))
    log = figure.y.log or (figure.log_if_wide and is_wide(value for line in lines for value in line.y))
    y = replace(axis, log=log, low=None if log else axis.low)
    name = metric.key.removeprefix("eval/").replace("/", "_")
    caption = " ".join(_captions(shown, figure, metric, is_below=any((v or 0) < 0 for line in lines for v in line.y)))
    return Diagram(name, metric.title, _SAMPLES, y, tuple(lines), caption)


def _captions(shown: Sequence[RunRecord], figure: RunFigure, metric: Metric, *, is_below: bool) -> list[str]:
    longest = max(run.metrics.column(metric.key).every for run in shown)
    captions = [figure.caption] if figure.caption else []
    if metric.noisy:
        captions.append("Smoothed: a mean over about a fortieth of each run.")
    elif metric.stderr and any(run.has(metric.stderr) for run in shown) and len(shown) <= _BANDS:
        captions.append(BANDS_OF_ERRORS)
    if longest > 1:
        thinning = "" if metric.noisy else f"Of long runs every {longest}th value is read as it is. "
        captions.append(f"{thinning}{BANDS_OF_LONG_RUNS}")
    if is_below and metric.key.startswith("gap/"):
        captions.append("Below 0 the validation samples are easier than the training samples as they were measured.")
    return captions

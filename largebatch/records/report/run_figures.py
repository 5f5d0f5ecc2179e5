"""Figures of runs over their course, by section of the page: of one run its own, of several one line per setting.

A line is the mean over seeds. Of several optimizers each has its colour, and batch sizes differ in their dashes; of one
optimizer, batch sizes have colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, is_wide, numbers
from largebatch.records.figures.layer_maps import layer_maps
from largebatch.records.figures.legends import batch_series
from largebatch.records.figures.run_figures import (
    BANDS_OF_ERRORS,
    BANDS_OF_INTERVALS,
    BANDS_OF_LONG_RUNS,
    metric_line,
    run_figures,
)
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
from largebatch.records.report.evidence import EXPECTED, RunRecord
from largebatch.records.rows.placed_rows import thinned

# Picture -> section of the page.
SECTIONS = {TRAINING: "training", NOISE: "noise", TIME: "time", COMMUNICATION: "time", SHARPNESS: "curvature"}
_SAMPLES = Axis("samples seen")
_MOST_POINTS = 12_000  # of a figure: more are slow on a phone
_FEWEST, _MOST = 30, 400  # of a line
_MARKED = 3  # lines whose points are marked: of more the marks hide the dashes
_BANDS = 6  # more bands cover each other
MOST_SHOWN = 8  # runs of a task that are shown by themselves, too


def run_label(run: RunRecord) -> str:
    """Batch and optimizer, as legends name lines: runs of one label are replicates, or differ in settings."""
    return f"batch {run.global_batch_size:,}{'+' if run.is_ramped else ''}, {run.optimizer}"


def curves(runs: Sequence[RunRecord]) -> dict[str, list[Diagram]]:
    """Section -> its figures that have data: a line per setting and a figure per metric; of a single run its own."""
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
    settings = _replicates(shown)
    most = max(_FEWEST, min(_MOST, _MOST_POINTS // len(settings)))
    by_optimizer = len({run.optimizer for run in shown}) > 1
    sizes = sorted({run.global_batch_size for run in runs})
    lines: list[Line] = []
    for replicates in settings:
        drawn = [_line(run, metric, most, has_band=len(settings) <= _BANDS) for run in replicates]
        batch, optimizer = replicates[0].global_batch_size, replicates[0].optimizer
        lines += [
            replace(line, batch=batch, optimizer=optimizer, dash=sizes.index(batch) if by_optimizer else None,
                    group="" if by_optimizer else batch_series(batch),
                    style="line" if len(settings) > _MARKED and len(line.x) > 2 else line.style)
            for line in (mean_of_seeds(drawn, most) if len(drawn) > 1 else drawn)
        ]  # fmt: skip
    log = figure.y.log or (figure.log_if_wide and is_wide(value for line in lines for value in line.y))
    y = replace(axis, log=log, low=None if log else axis.low)
    if len(settings) > _BANDS:
        lines = [replace(line, low=None, high=None) for line in lines]
    name = metric.key.removeprefix("eval/").replace("/", "_")
    is_below = any((v or 0) < 0 for line in lines for v in line.y)
    captions = _captions(shown, figure, metric, is_below=is_below, num_settings=len(settings))
    return Diagram(name, metric.title, _SAMPLES, y, tuple(lines), " ".join(captions))


def _replicates(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ in nothing but their seed and the machine, together; ascending in batch size."""
    found: dict[object, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: run.global_batch_size):
        same = {key: text for key, text in run.settings.items() if not key.startswith(EXPECTED)}
        found.setdefault((run.global_batch_size, run.is_ramped, *sorted(same.items())), []).append(run)
    return list(found.values())


def _line(run: RunRecord, metric: Metric, most: int, *, has_band: bool) -> Line:
    line = metric_line(run.metrics, metric, label=run_label(run), most=most, has_band=has_band)
    assert line is not None
    return replace(line, name=run.name)


def mean_of_seeds(lines: Sequence[Line], most: int) -> list[Line]:
    """Their mean as far as all of them go, with a band from the least to the greatest; themselves if they do not meet.

    >>> one, other = (Line("a", [0, 2, 4], [0.0, y, 2 * y]) for y in (1.0, 3.0))
    >>> (mean,) = mean_of_seeds([one, other], 10)
    >>> mean.x, mean.y, mean.low, mean.name
    ([0.0, 2.0, 4.0], [0.0, 2.0, 4.0], [0.0, 1.0, 2.0], 'a: mean of 2')
    """
    columns = [np.array([line.x, line.y], dtype=float) for line in lines]
    start, end = max(x[0] for x, _ in columns), min(x[-1] for x, _ in columns)
    grid = np.unique(np.concatenate([x for x, _ in columns]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return list(lines)
    grid = grid[thinned(len(grid), most)]
    values = np.array([np.interp(grid, x, y) for x, y in columns])
    mean, low, high = (numbers(one) for one in (values.mean(axis=0), values.min(axis=0), values.max(axis=0)))
    name = f"{lines[0].label}: mean of {len(lines)}"
    return [replace(lines[0], x=numbers(grid), y=mean, low=low, high=high, name=name)]


def _captions(
    shown: Sequence[RunRecord], figure: RunFigure, metric: Metric, *, is_below: bool, num_settings: int
) -> list[str]:
    longest = max(run.metrics.column(metric.key).every for run in shown)
    captions = [text for text in (metric.meaning, figure.caption) if text]
    has_means, has_bands = num_settings < len(shown), num_settings <= _BANDS
    if has_means:
        captions.append(f"Lines: means over seeds{'; bands: from the least to the greatest' * has_bands}.")
    if metric.noisy:
        captions.append("Smoothed: a mean over about a fortieth of each run.")
    elif has_bands and not has_means:
        for key, words in ((metric.stderr, BANDS_OF_ERRORS), (metric.low, BANDS_OF_INTERVALS)):
            captions += [words] if key and any(run.has(key) for run in shown) else []
    if longest > 1:
        thinning = "" if metric.noisy else f"Of long runs every {longest}th value is read as it is. "
        captions.append(f"{thinning}{BANDS_OF_LONG_RUNS}")
    if is_below and metric.key.startswith("gap/"):
        captions.append("Below 0 the validation samples are easier than the training samples as they were measured.")
    return captions

"""The figures of one run, from the columns of its rows. A figure without data is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.figures.diagram import FEW_POINTS, Axis, Diagram, Line, Numbers, is_wide, numbers
from largebatch.records.figures.run_metrics import BATCH, FIGURES, TIME_PARTS, Metric, RunFigure, group_of
from largebatch.records.rows.augmented_gap import gap_remark
from largebatch.records.rows.columns import Column, Columns
from largebatch.records.rows.placed_rows import thinned

BANDS_OF_ERRORS = "Bands: 95 %, by the standard error."
BANDS_OF_INTERVALS = "Bands: 95 %."
BANDS_OF_LONG_RUNS = "Bands of long runs: the least and the greatest of all values."
_MOST_POINTS = 500  # of a line; of raw values twice as many
_TIME_BINS = 100
_TWO_SIDED = 1.96  # standard errors of a normal distribution that hold 95 %


def run_figures(columns: Columns) -> dict[str, list[Diagram]]:
    """Name of a picture -> its figures, of those that have data.

    >>> from largebatch.records.rows.columns import columns_of
    >>> found = run_figures(columns_of([{"step": 1, "samples_seen": 8, "gap/loss": 0.5}]))
    >>> [(picture, [figure.name for figure in figures]) for picture, figures in found.items()]
    [('training', ['generalization_gap'])]
    """
    found: dict[str, list[Diagram]] = {}
    for one in FIGURES:
        if (figure := _figure(columns, one)).lines:
            found.setdefault(one.picture, []).append(figure)
    return found


def draw_run(columns: Columns, folder: str | Path, *, title: str) -> list[Path]:
    """Draw a PNG per picture of `run_figures` into `folder`; returns their paths."""
    from largebatch.records.figures.draw_png import draw_panels

    found = run_figures(columns).items()
    return [draw_panels(figures, Path(folder) / f"{name}.png", title=title) for name, figures in found]


def metric_line(columns: Columns, metric: Metric, *, label: str, most: int, has_band: bool = True) -> Line | None:
    """The course of a metric, smoothed if it is noisy, in at most so many points; None without data.

    The band is the 95 % interval, where there is one; else, where values are left out, it goes from the least to the
    greatest of each stretch, so that no extreme is lost.
    """
    column = columns.column(metric.key)
    x, y = column.samples, column.values
    if not len(x):
        return None
    is_smoothed = metric.noisy and len(y) > FEW_POINTS
    if is_smoothed:
        y = smooth(column.means, len(y) / FEW_POINTS)
    kept = thinned(len(x), most)
    low, high = _band(columns, metric, y, kept, is_smoothed=is_smoothed) if has_band else (None, None)
    return Line(label, numbers(x[kept]), numbers(y[kept]), low, high, "line" if is_smoothed else metric.style)


def _band(
    columns: Columns, metric: Metric, y: np.ndarray, kept: np.ndarray, *, is_smoothed: bool
) -> tuple[Numbers, Numbers] | tuple[None, None]:
    column = columns.column(metric.key)
    ends = [columns.series(key)[1] for key in (metric.low, metric.high) if key]
    if metric.stderr and len(error := columns.series(metric.stderr)[1]) == len(y):
        ends = [y - _TWO_SIDED * error, y + _TWO_SIDED * error]
    if len(ends) == 2 and all(len(end) == len(y) for end in ends):
        return numbers(ends[0][kept]), numbers(ends[1][kept])
    if column.every > 1 or (len(kept) < len(y) and not is_smoothed):
        low, high = _envelope(column, kept)
        return numbers(low), numbers(high)
    return None, None


def _envelope(column: Column, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest of all values since the kept point before."""
    starts = np.concatenate([[0], kept[:-1] + 1])
    return np.fmin.reduceat(column.low, starts), np.fmax.reduceat(column.high, starts)


def _figure(columns: Columns, one: RunFigure) -> Diagram:
    lines = tuple(line for metric in one.metrics for line in _lines(columns, metric))
    log = one.y.log or (one.log_if_wide and is_wide(value for line in lines for value in line.y))
    captions = [metric.meaning for metric in one.metrics if metric.meaning and columns.has(metric.key)]
    captions += [one.caption] if one.caption else []
    if any(columns.has(metric.low) for metric in one.metrics if metric.low):
        captions.append(BANDS_OF_INTERVALS)
    if any(columns.has(metric.stderr) for metric in one.metrics if metric.stderr):
        captions.append(BANDS_OF_ERRORS)
    if any(columns.column(metric.key).every > 1 for metric in one.metrics if not metric.noisy):
        captions.append(BANDS_OF_LONG_RUNS)
    figure = Diagram(
        one.name,
        one.title,
        Axis("samples seen", low=0, high=1.02 * columns.samples_seen or None),
        replace(one.y, log=log, low=None if log else one.y.low),
        lines,
        " ".join(captions),
        _samples_per_epoch(columns),
    )
    return _COMPUTED[one.name](columns, figure) if one.name in _COMPUTED else figure


def _samples_per_epoch(columns: Columns) -> float | None:
    x, epoch = columns.series("epoch")
    known = (epoch > 0) & (x > 0)
    return float(x[known][-1] / epoch[known][-1]) if known.any() else None


def _lines(columns: Columns, metric: Metric) -> list[Line]:
    """The course of a metric, over its raw values if it is noisy and has many."""
    column = columns.column(metric.key)
    lost = f" ({column.lost} not finite)" if column.lost else ""
    is_smoothed = metric.noisy and len(column.samples) > FEW_POINTS
    label = f"{metric.label}{', smoothed' * is_smoothed}{lost}{_last(columns, metric)}"
    line = metric_line(columns, metric, label=label, most=_MOST_POINTS, has_band=not is_smoothed)
    if line is None:
        return []
    line = replace(line, group=metric.label)
    if not is_smoothed:
        return [line]
    x, y = column.samples, column.values
    if column.every > 1 or len(x) > 2 * _MOST_POINTS:  # from the least to the greatest of each stretch
        kept = thinned(len(x), _MOST_POINTS)
        x, y = np.repeat(x[kept], 2), np.column_stack(_envelope(column, kept)).ravel()
    return [Line(metric.label, numbers(x), numbers(y), style="faint", group=metric.label), line]


def _last(columns: Columns, metric: Metric) -> str:
    """The last value of a metric with a standard error, for its label."""
    x, values = columns.series(metric.key)
    error_x, errors = columns.series(metric.stderr) if metric.stderr else (x[:0], x[:0])
    if not len(x) or not len(error_x) or error_x[-1] != x[-1]:
        return ""
    return f", at the end {values[-1]:.3f} ± {errors[-1]:.3f}"


def _with_remark(columns: Columns, figure: Diagram) -> Diagram:
    """Name what changes the meaning of the gap: a data set that augments by itself, easier validation samples."""
    is_below = any((value or 0.0) < 0 for line in figure.lines for value in line.y)
    easier = "Below 0 the validation samples are easier than the training samples as they were measured."
    title = figure.title + gap_remark(columns.is_gap_augmented)
    return replace(figure, title=title, caption=f"{figure.caption} {easier}".strip() if is_below else figure.caption)


def _if_it_changes(columns: Columns, figure: Diagram) -> Diagram:
    batch = metric_line(columns, Metric(BATCH, "global batch", style="steps"), label="global batch", most=_MOST_POINTS)
    return replace(figure, lines=(batch,)) if batch and len(set(columns.column(BATCH).values)) > 1 else figure


def _with_groups(columns: Columns, figure: Diagram) -> Diagram:
    """Add the noise scale of each group of parameters, and the global batch."""
    groups = {name: group for name in columns.by_name if (group := group_of(name)) is not None}
    beside = [Metric(key, group, style="line") for key, group in groups.items()]
    if not figure.lines and not beside:
        return figure
    beside.append(Metric(BATCH, "global batch", style="steps"))
    lines = [metric_line(columns, one, label=one.label, most=_MOST_POINTS, has_band=False) for one in beside]
    return replace(figure, lines=(*figure.lines, *(line for line in lines if line is not None)))


def _with_parts(columns: Columns, figure: Diagram) -> Diagram:
    """Stack exposed and hidden communication to the total, under the other lines."""
    (x, total), (at, exposed) = (columns.series(f"communication/{name}_s") for name in ("total", "exposed"))
    if not len(x):
        return replace(figure, lines=())
    if np.array_equal(x, at):
        parts = _stack(x, {"exposed": exposed, "hidden": total - exposed})
    else:
        parts = [Line("exposed", numbers(at), numbers(exposed)), Line("exposed and hidden", numbers(x), numbers(total))]
    return replace(figure, lines=(*parts, *figure.lines))


def _with_stability_limit(columns: Columns, figure: Diagram) -> Diagram:
    """Add 2 / learning rate where it is near enough to be seen beside the eigenvalues."""
    if not figure.lines:
        return figure
    highest = max(value for value in figure.lines[0].y if value is not None)
    lowest = min(value for value in figure.lines[0].y if value is not None)
    x, lr = columns.series("train/lr")
    kept = thinned(len(x), _MOST_POINTS) if len(x) else np.empty(0, dtype=int)
    with np.errstate(divide="ignore"):
        limit = 2 / lr[kept]
    limit = np.where(limit < 3 * highest, limit, np.nan)
    figure = replace(figure, y=replace(figure.y, low=min(0.0, lowest)))
    if not np.isfinite(limit).any():
        return figure
    line = Line("2 / learning rate", numbers(x[kept]), numbers(limit), style="dashed")
    return replace(figure, lines=(*figure.lines, line))


def _with_time_parts(columns: Columns, figure: Diagram) -> Diagram:
    """Stack the parts of a step's time to the whole; one slow step does not flatten the others."""
    x, parts = _time_bins(columns)
    if not len(x):
        return figure
    whole = sum(parts.values(), np.zeros(len(x)))
    shown = {name: part for name, part in parts.items() if part.any()}
    typical, highest = float(np.median(whole)), float(whole.max())
    is_cut = highest > 2 * typical > 0
    y = replace(figure.y, high=1.5 * typical) if is_cut else figure.y
    peak = f" The peak of {highest:.3g} s is cut off." if is_cut else ""
    return replace(figure, y=y, lines=tuple(_stack(x, shown)), caption=figure.caption + peak)


def _time_bins(columns: Columns) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """x[bins], and name -> seconds[bins]: data, compute, communication, and the rest of the step."""
    parts = [columns.column(key) for key in TIME_PARTS]
    x = np.unique(np.concatenate([part.samples for part in parts]))
    if not len(x):
        return x, {}
    seconds = np.array([_at(part, x, absent=0.0) for part in parts])
    whole = _at(columns.column("time/step_s"), x, absent=np.nan)
    table = np.vstack([x, seconds, np.maximum(whole - seconds.sum(axis=0), 0.0)])
    table = np.where(np.isfinite(table), table, 0.0)
    bins = np.array_split(table, min(len(x), _TIME_BINS), axis=1)
    x, *means = np.array([one.mean(axis=1) for one in bins]).T
    return x, dict(zip((*TIME_PARTS.values(), "other"), means, strict=True))


def _at(column: Column, x: np.ndarray, *, absent: float) -> np.ndarray:
    """The means at `x`; of a long column each point stands for the stretch up to it."""
    if not len(column.samples):
        return np.full(len(x), absent)
    places = np.minimum(np.searchsorted(column.samples, x), len(column.samples) - 1)
    known = column.samples[places] == x if column.every == 1 else True
    return np.where(known, column.means[places], absent)


def _stack(x: np.ndarray, parts: Mapping[str, np.ndarray]) -> list[Line]:
    if len(x) == 1:  # an area needs two points: it goes from the start of the run
        x, parts = np.array([0.0, x[0]]), {name: np.repeat(part, 2) for name, part in parts.items()}
    kept = thinned(len(x), _MOST_POINTS)
    return [Line(name, numbers(x[kept]), numbers(part[kept]), style="stack") for name, part in parts.items()]


# Name of a figure -> its lines that are no metric of the rows as it is.
_COMPUTED: dict[str, Callable[[Columns, Diagram], Diagram]] = {
    "generalization_gap": _with_remark,
    "global_batch": _if_it_changes,
    "noise_scale": _with_groups,
    "communication": _with_parts,
    "lambda_max": _with_stability_limit,
    "step_time": _with_time_parts,
}

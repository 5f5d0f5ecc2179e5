"""Figures of runs over their course: one line per run.

Of several optimizers each has its colour, and batch sizes differ in their dashes; of one, batch sizes have colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.figures.diagram import Axis, Diagram, Line, Numbers, Style, Surface
from largebatch.records.report.evidence import RunRecord
from largebatch.records.rows.columns import Column
from largebatch.records.rows.placed_rows import thinned

_SAMPLES = Axis("samples seen", "samples")
_MOST_POINTS = 12_000  # of a figure: more are slow on a phone
_FEWEST, _MOST = 30, 400  # of a line
_SMOOTHED = 40  # points that a noisy line is smoothed to
_BANDS = 6  # more bands cover each other
_MOST_MAPS = 8
_LARGEST = 1e150  # as of a column


def run_label(run: RunRecord) -> str:
    """What a line is called in legends: runs of one label are replicates, or differ in settings."""
    return f"batch {run.global_batch_size:,}{'+' if run.is_ramped else ''}, {run.optimizer}"


def curves(runs: Sequence[RunRecord]) -> dict[str, list[Diagram]]:
    """The figures that have data, by the section that they belong to."""
    found = {
        "training": [
            _over_samples(runs, "train/loss", "train_loss", "Training loss", Axis("training loss"), smoothed=True),
            _over_samples(runs, "eval/val_accuracy", "val_accuracy", "Validation accuracy",
                          Axis("validation accuracy", "share correct")),
            _over_samples(runs, "eval/val_loss", "val_loss", "Validation loss", Axis("validation loss")),
            _over_samples(runs, "gap/loss", "gap_loss", "Generalization gap of the loss",
                          Axis("validation minus training loss"), stderr="gap/loss_stderr"),
            _over_samples(runs, "train/lr", "learning_rate", "Learning rate", Axis("learning rate")),
        ],
        "noise": [noise_scale(runs)],
        "time": [
            _over_samples(runs, "train/samples_per_s", "throughput", "Throughput",
                          Axis("throughput", "samples / s"), smoothed=True),
        ],
    }  # fmt: skip
    return {section: [one for one in figures if one] for section, figures in found.items()}


def noise_scale(runs: Sequence[RunRecord]) -> Diagram | None:
    """The gradient noise scale with its interval, where there is enough evidence for one."""
    shown = [run for run in runs if run.has("noise_scale/b_simple")]
    lines = []
    for run in shown:
        (x, y), (_, low), (_, high) = (run.series(f"noise_scale/{key}") for key in ("b_simple", "ci_low", "ci_high"))
        kept = thinned(len(x), _points(len(shown)))
        band = len(shown) <= _BANDS and len(low) == len(high) == len(x)
        ends = (low[kept].tolist(), high[kept].tolist()) if band else (None, None)
        lines.append(Line(run_label(run), x[kept].tolist(), _plain(y[kept]), *ends))
    caption = (
        "tr(Σ) / |G|²: the batch size at which noise and signal of the gradient are equal. Left out where there is not "
        "enough evidence. Bands: 95 %. An order of magnitude, not a recipe."
    )
    y_axis = Axis("gradient noise scale", "samples", log=True)
    return _shown(Diagram("noise_scale", "Gradient noise scale", _SAMPLES, y_axis, tuple(lines), caption), shown, runs)


def trust_ratio_maps(runs: Sequence[RunRecord]) -> list[Surface]:
    """A map per run that has layers, of one run per label and a few at most: layers over samples."""
    one_each = {run_label(run): run for run in runs if run.layers}
    return [found for run in list(one_each.values())[:_MOST_MAPS] if (found := _trust_ratio_map(run))]


def _trust_ratio_map(run: RunRecord) -> Surface | None:
    prefix = "trust_ratio/"
    names = list(dict.fromkeys(key for row in run.layers for key in row if key.startswith(prefix)))
    if not names:
        return None
    rows = [run.layers[i] for i in thinned(len(run.layers), 120)]
    values = [[_finite(row.get(name)) for row in rows] for name in names]
    return Surface(
        "trust_ratio",
        f"Trust ratio: {run.name}, {run_label(run)}",
        _SAMPLES,
        Axis("layer"),
        Axis("trust ratio", log=True),
        [float(row["samples_seen"]) for row in rows],
        list(range(len(names))),
        values,
        caption="|weight| / |update| of each layer, as LARS and LAMB scale its rate; layers without one are left out.",
        row_names=[name.removeprefix(prefix) for name in names],
    )


def _over_samples(
    runs: Sequence[RunRecord],
    key: str,
    name: str,
    title: str,
    axis: Axis,
    *,
    smoothed: bool = False,
    stderr: str | None = None,
) -> Diagram | None:
    shown = [run for run in runs if run.has(key)]
    lines = []
    for run in shown:
        x, y = run.series(key)
        if smoothed and len(y) > _SMOOTHED:
            y = smooth(run.column(key).means, len(y) / _SMOOTHED)
        kept = thinned(len(x), _points(len(shown)))
        ends: tuple[Numbers, Numbers] | tuple[None, None] = (None, None)
        if stderr and len(shown) <= _BANDS and len(error := run.series(stderr)[1]) == len(y):
            ends = ((y - 1.96 * error)[kept].tolist(), (y + 1.96 * error)[kept].tolist())
        elif run.column(key).every > 1 and len(shown) <= _BANDS:
            ends = _envelope(run.column(key), kept)
        style: Style = "both" if len(kept) <= _SMOOTHED else "line"
        low, high = ends
        lines.append(Line(run_label(run), x[kept].tolist(), _plain(y[kept]), low, high, style))
    caption = "Smoothed: a mean over about a fortieth of each run." if smoothed else ""
    if stderr and lines and lines[0].low is not None:
        caption = "Bands: 95 % by the standard error over validation samples."
    if thinned_out := [run.column(key).every for run in shown if run.column(key).every > 1]:
        which = "" if smoothed else f" Of long runs every {max(thinned_out)}th value is read as it is."
        caption = f"{caption}{which} Bands of long runs: the least and the greatest of all values.".strip()
    if key.startswith("gap/") and any((value or 0.0) < 0 for line in lines for value in line.y):
        caption = (
            f"{caption} Below 0 the validation samples are easier than the training samples as they were measured."
        )
    log = axis.unit == "" and _is_wide([value for line in lines for value in line.y])
    drawn = Diagram(name, title, _SAMPLES, Axis(axis.label, axis.unit, log=log), tuple(lines), caption)
    return _shown(drawn, shown, runs)


def _envelope(column: Column, kept: np.ndarray) -> tuple[Numbers, Numbers]:
    """The least and the greatest of all values since the kept point before."""
    starts = np.concatenate([[0], kept[:-1] + 1])
    return _plain(np.fmin.reduceat(column.low, starts)), _plain(np.fmax.reduceat(column.high, starts))


def _shown(figure: Diagram, runs: Sequence[RunRecord], of_task: Sequence[RunRecord]) -> Diagram | None:
    """A line for each of `runs`, with what tells it from the others of its task."""
    if not figure.lines:
        return None
    lines = tuple(replace(line, name=run.name) for line, run in zip(figure.lines, runs, strict=True))
    if len({run.optimizer for run in of_task}) > 1:
        sizes = sorted({run.global_batch_size for run in of_task})
        lines = tuple(
            replace(line, group=run.optimizer, dash=sizes.index(run.global_batch_size))
            for line, run in zip(lines, runs, strict=True)
        )
    return replace(figure, lines=lines)


def _points(num_lines: int) -> int:
    return max(_FEWEST, min(_MOST, _MOST_POINTS // max(num_lines, 1)))


def _is_wide(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and min(known) > 0 and max(known) > 50 * min(known)


def _plain(values: np.ndarray) -> Numbers:
    return [float(value) if math.isfinite(value) else None for value in values]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < _LARGEST else None

"""Several runs beside each other, from their evaluations. A figure without data is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from largebatch.records.figures.diagram import Axis, Diagram, Line, is_wide, numbers
from largebatch.records.figures.legends import batch_series
from largebatch.records.rows.row_file import Row

RowsOfRuns = Sequence[Sequence[Row]]
_TRAIN_LOSS = "eval/train_loss"
# 0.99 and 0.98 look alike, 0.01 and 0.02 do not: an accuracy is drawn as an error.
_ACCURACY, _ERROR = "eval/val_accuracy", Axis("validation error", "fraction wrong")
_LOSS, _VALIDATION_LOSS = "eval/val_loss", Axis("validation loss", "mean per sample or token")
_SAMPLES, _STEPS = Axis("samples seen"), Axis("optimizer steps")
_WIDE = 6  # runs that end by this factor apart get a logarithmic axis


def comparison_figures(
    runs: Sequence[tuple[str, Sequence[Row]]], *, optimizers: Mapping[str, str] | None = None
) -> list[Diagram]:
    """Validation error and loss of several runs, over samples and over optimizer steps.

    Args:
        runs: (label, rows) of every run. Runs of one label, say its seeds, are one line, their mean, with a band from
            the least to the greatest value.
        optimizers: label -> its optimizer, which gives it the colour; labels of one optimizer differ in their dashes.

    Raises:
        ValueError: if no run has a validation metric.
    """
    groups = {name: [rows for label, rows in runs if label == name] for name, _ in runs}
    figures = []
    for key, axis in ((_ACCURACY, _ERROR), (_LOSS, _VALIDATION_LOSS)):
        for against, x in (("samples_seen", _SAMPLES), ("step", _STEPS)):
            found = (_mean_line(label, group, against, key) for label, group in groups.items())
            if lines := _of_optimizers([line for line in found if line is not None], optimizers or {}):
                x = replace(x, log=against == "step" and _ends_differ([rows for _, rows in runs], against))
                y = replace(axis, log=is_wide(value for line in lines for value in line.y))
                figures.append(_figure(key, against, x, y, lines))
    if not figures:
        raise ValueError(
            f"None of the {len(runs)} runs has {_ACCURACY} or {_LOSS} in its metrics: there is nothing to compare. "
            "Switch evaluation on for these runs."
        )
    return figures


def _of_optimizers(lines: Sequence[Line], optimizers: Mapping[str, str]) -> tuple[Line, ...]:
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        name = optimizers.get(line.label, "")
        found.append(replace(line, optimizer=name, dash=seen[name] if name else None))
        seen[name] += 1
    return tuple(found)


def large_batch_gap_figures(runs: Mapping[int, RowsOfRuns]) -> list[Diagram]:
    """Generalization gap, then validation error, or loss without accuracies, over samples, steps and training loss.

    Args:
        runs: global batch size -> rows of every run with it; one line per run, a colour per batch size.
    """
    every = [rows for group in runs.values() for rows in group]
    has_error = all(np.isfinite(_values(rows, "step", _ACCURACY)[1]).any() for rows in every)
    gap = Axis("generalization gap", "validation loss - training loss")
    below = (_ACCURACY, _ERROR) if has_error else (_LOSS, _VALIDATION_LOSS)
    of_loss = Axis("training loss (evaluated; falls to the right)", falls=True)
    figures = []
    for key, y in (("gap/loss", gap), below):
        for against, x in (("samples_seen", _SAMPLES), ("step", _STEPS), (_TRAIN_LOSS, of_loss)):
            lines = [line for size, group in runs.items() for line in _lines_of_batch(size, group, against, key)]
            places = [place for line in lines for place in line.x if place is not None]
            if key == "gap/loss" and places:
                lines.append(Line("no gap", [min(places), max(places)], [0.0, 0.0], style="dashed"))
            log = min(places, default=0.0) > 0 if against == _TRAIN_LOSS else _ends_differ(every, against)
            figures.append(_figure(key, against, replace(x, log=log), y, tuple(lines)))
    caption = (
        "One line per run; losses in eval mode, without augmentation. Over the training loss only evaluations with a "
        "new lowest one."
    )
    return [replace(figures[0], caption=caption), *figures[1:]]


def _figure(key: str, against: str, x: Axis, y: Axis, lines: tuple[Line, ...]) -> Diagram:
    name = f"{key}_over_{against}".replace("eval/", "").replace("/", "_")
    over = "training loss" if against == _TRAIN_LOSS else x.label
    return Diagram(name, f"{y.label[:1].upper()}{y.label[1:]} over {over}", x, y, lines)


def _lines_of_batch(size: int, group: RowsOfRuns, against: str, key: str) -> Iterable[Line]:
    """A line per run through its evaluations in their order."""
    label = f"batch {size:,} ({len(group)} run{'s' if len(group) > 1 else ''})"
    for rows in group:
        x, y = _values(rows, against, key)
        if against == _TRAIN_LOSS:
            is_new = x <= np.fmin.accumulate(x)
            x, y = x[is_new], y[is_new]
        yield Line(label, numbers(x), numbers(y), style="both", group=batch_series(size), batch=size)


def _mean_line(label: str, runs: RowsOfRuns, against: str, key: str) -> Line | None:
    """The mean of the runs and the band between the least and the greatest, where all of them have values."""
    found = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in (_values(rows, against, key) for rows in runs)]
    found = [(x, y) for x, y in found if len(x)]
    if not found:
        return None
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    grid = np.unique(np.concatenate([x for x, _ in found]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.array([np.interp(grid, x, y) for x, y in found])
    low, high = (numbers(values.min(axis=0)), numbers(values.max(axis=0))) if len(found) > 1 else (None, None)
    return Line(label, numbers(grid), numbers(values.mean(axis=0)), low, high, "both")


def _values(rows: Sequence[Row], against: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the rows that have both, in the order of steps; an accuracy as an error, infinity as NaN."""
    found = [(row["step"], row[against], row[key]) for row in rows if {"step", against, key} <= row.keys()]
    table = np.array(sorted(found, key=lambda one: one[0]), dtype=float).reshape(-1, 3)
    _, x, y = np.where(np.isfinite(table), table, np.nan).T
    return x, 1 - y if key == _ACCURACY else y


def _ends_differ(every: RowsOfRuns, against: str) -> bool:
    ends = [max((float(row[against]) for row in rows if against in row), default=0.0) for rows in every]
    ends = [end for end in ends if end > 0]
    return bool(ends) and max(ends) >= _WIDE * min(ends)

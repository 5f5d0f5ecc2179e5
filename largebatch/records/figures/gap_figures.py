"""The gap: what it is made of, and how it differs between batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from largebatch.diagnostics.gap.gap_parts import GapParts
from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.diagram import Axis, Diagram, Line, numbers
from largebatch.records.figures.figure import Bar, Bars
from largebatch.records.rows.row_file import Row
from largebatch.records.rows.series import has_data, series

# Global batch size -> rows of every run with it.
Runs = Mapping[int, Sequence[Sequence[Row]]]

_WORSE, _BETTER = "makes the model look worse", "better"
_TRAIN_LOSS = "eval/train_loss"
_WIDE = 6  # an axis that spans more than this factor between runs is logarithmic
_CAPTION = (
    "Each bar begins where the one above it ends: from the training samples as the training loss sees them (top) to "
    "the validation samples (bottom). Whiskers: 95 % paired bootstrap interval of the change. A printed training loss "
    "also averages over older weights, which no checkpoint shows."
)


def gap_parts_figures(found: GapParts, *, unit: str) -> list[Bars]:
    """Waterfalls of the loss, and of the error where there are accuracies.

    Args:
        found: the parts.
        unit: the mean loss is a mean over these.
    """
    names = [part.name for part in found.parts]
    losses = [part.loss for part in found.parts]
    ends = (found.train_loss, found.val_loss)
    title = "What lies between training loss and validation loss"
    loss = Axis("loss", f"mean per {unit}")
    figures = [_waterfall("gap_of_loss", title, loss, names, losses, ends, ".3g")]
    if found.train_accuracy is not None and found.val_accuracy is not None:
        falls = [part.accuracy for part in found.parts]
        ends = (1 - found.train_accuracy, 1 - found.val_accuracy)
        error = Axis("error", f"share of {unit}s that are wrong")
        title = "What lies between training error and validation error"
        figures.append(_waterfall("gap_of_error", title, error, names, falls, ends, ".2%"))
    return figures


def _waterfall(
    name: str,
    title: str,
    axis: Axis,
    names: Sequence[str],
    parts: Sequence[Interval | None],
    ends: tuple[float, float],
    form: str,
) -> Bars:
    at, end = ends
    bars = [Bar(0, at, at, text=f"{at:{form}}")]
    for row, part in enumerate(parts, start=1):
        if part is None:
            bars.append(Bar(row, at, at, text="none"))
            continue
        label = "" if part.value == 0 else _WORSE if part.value > 0 else _BETTER
        reached = at + part.value
        bars.append(Bar(row, at, reached, label, at + part.low, at + part.high, f"{part.value:+{form}}"))
        at = reached
    bars.append(Bar(len(names) + 1, end, end, text=f"{end:{form}}"))
    rows = ["training", *names, "validation"]
    return Bars(name, title, axis, Axis("part"), rows, tuple(bars), True, _CAPTION, ("", _WORSE, _BETTER))


def large_batch_gap_figures(runs: Runs) -> list[Diagram]:
    """Generalization gap, then validation error, or loss without accuracies, over samples, steps and training loss.

    Args:
        runs: global batch size -> rows of every run with it; one line per run, a colour per batch size.
    """
    every = [rows for group in runs.values() for rows in group]
    has_error = all(has_data(rows, "eval/val_accuracy") for rows in every)
    gap = Axis("generalization gap", "validation loss - training loss")
    below = Axis("validation error", "share wrong") if has_error else Axis("validation loss")
    of_loss = "training loss (evaluated; falls to the right)"
    across = {
        "samples_seen": (Axis("samples seen"), "over samples"),
        "step": (Axis("optimizer steps"), "over steps"),
        _TRAIN_LOSS: (Axis(of_loss, falls=True), "at evaluations with a new lowest training loss"),
    }
    figures = []
    for key, axis, name in (
        ("gap/loss", gap, "gap"),
        ("eval/val_accuracy" if has_error else "eval/val_loss", below, "validation"),
    ):
        for against, (x, where) in across.items():
            lines = _lines(runs, against, key, is_error=key == "eval/val_accuracy")
            places = [place for line in lines for place in line.x if place is not None]
            if key == "gap/loss" and places:
                lines.append(Line("no gap", [min(places), max(places)], [0.0, 0.0], style="dashed"))
            x = replace(x, log=_is_log(every, against))
            title = f"{axis.label.capitalize()} {where}"
            figures.append(Diagram(f"{name}_{against.rpartition('/')[2]}", title, x, axis, tuple(lines)))
    return [replace(figures[0], caption="One line per run; losses in eval mode, without augmentation."), *figures[1:]]


def _lines(runs: Runs, against: str, key: str, *, is_error: bool) -> list[Line]:
    """A line per run through its evaluations in their order."""
    lines = []
    for size, group in runs.items():
        label = f"batch {size:,} ({len(group)} run{'s' if len(group) > 1 else ''})"
        for rows in group:
            _, x = series([row for row in rows if key in row], against, "step")
            _, y = series([row for row in rows if against in row], key, "step")
            if against == _TRAIN_LOSS:
                is_new = x <= np.fmin.accumulate(x)
                x, y = x[is_new], y[is_new]
            y = 1 - y if is_error else y
            lines.append(Line(label, numbers(x), numbers(y), style="both"))
    return lines


def _is_log(every: Sequence[Sequence[Row]], against: str) -> bool:
    is_loss = against == _TRAIN_LOSS
    ends = [float(np.nanmin(y) if is_loss else y[-1]) for _, y in (series(rows, against, "step") for rows in every)]
    return min(ends) > 0 and (is_loss or max(ends) > _WIDE * min(ends))

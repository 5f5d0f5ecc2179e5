"""The gap between training and validation, part by part."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.diagnostics.gap.gap_parts import GapParts
from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.diagram import Axis
from largebatch.records.figures.figure import Bar, Bars

_WORSE, _BETTER = "makes the model look worse", "better"
_CAPTION = (
    "Each bar begins where the one above it ends: from the training samples as the training loss sees them (top) to "
    "the validation samples (bottom). Whiskers: 95 % paired bootstrap interval of the change. A printed training loss "
    "also averages over older weights, which no checkpoint shows."
)


def gap_parts_figures(found: GapParts, *, unit: str) -> list[Bars]:
    """Waterfalls of the loss, and of the error where there are accuracies.

    Args:
        found: the parts.
        unit: the loss is a mean per this unit, such as a sample.
    """
    names = [part.name for part in found.parts]
    losses = [part.loss for part in found.parts]
    ends = (found.train_loss, found.val_loss)
    title = "From training loss to validation loss, part by part"
    loss = Axis("loss", f"mean per {unit}")
    figures = [_waterfall("gap_of_loss", title, loss, names, losses, ends, ".3g")]
    if found.train_accuracy is not None and found.val_accuracy is not None:
        falls = [part.accuracy for part in found.parts]
        ends = (1 - found.train_accuracy, 1 - found.val_accuracy)
        error = Axis("error", f"share of {unit}s that are wrong")
        title = "From training error to validation error, part by part"
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

"""How runs end at each batch size, and the figures of that: replicates become means with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from largebatch.diagnostics.gap.large_batch_gap import clipped, welch_difference
from largebatch.diagnostics.intervals import Interval, mean_interval
from largebatch.records.figures.diagram import Axis, Diagram, Line, Numbers, numbers
from largebatch.records.metric_keys import stderr_key
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.seeds import last_values

_BATCH = Axis("batch size", "samples", log=True)
_TWO_SIDED = 1.959964  # standard errors of a normal distribution that hold 95 %


@dataclass(frozen=True)
class Quality:
    """A metric by which runs are compared.

    Attributes:
        key: of the rows.
        label: the quantity.
        unit: of it.
        higher_is_better: whether a lower value is worse.
        low, high: bounds of the quantity, as of a share.
    """

    key: str
    label: str
    unit: str = ""
    higher_is_better: bool = False
    low: float = -math.inf
    high: float = math.inf


ACCURACY = Quality(
    "eval/val_accuracy", "validation accuracy", "share correct", higher_is_better=True, low=0.0, high=1.0
)
LOSS = Quality("eval/val_loss", "validation loss")
ACCURACY_GAP = Quality("gap/accuracy", "accuracy gap, training minus validation", "share", low=-1.0, high=1.0)
LOSS_GAP = Quality("gap/loss", "loss gap, validation minus training")


def quality_of(group: Group) -> Quality | None:
    """Accuracy where all runs that ended have one, else the loss; None where they have neither."""
    ended = [run for run in group.runs if run.status != "diverged"]
    for quality in (ACCURACY, LOSS):
        if ended and all(run.last(quality.key) is not None for run in ended):
            return quality
    return None


def outcome(runs: Sequence[RunRecord], quality: Quality) -> Interval | None:
    """Mean over seeds of the last values, with a 95 % interval; runs that diverged have none.

    Of three or more seeds the interval is Student's over seeds; of one it comes from its own standard error over
    validation samples, and says nothing of seeds. Where none is known, as with two seeds, the ends are NaN. None
    without any value.
    """
    values = last_values(runs, quality.key)
    if not values:
        return None
    if len(values) == 1:
        half = _TWO_SIDED * _error_of_mean(_ended(runs, quality), quality)
        found = Interval(values[0], values[0] - half, values[0] + half)
    else:
        found = mean_interval(values)
    return clipped(found, quality.low, quality.high)


@dataclass(frozen=True)
class Difference:
    """How much worse a batch size ends than another; positive means worse.

    Attributes:
        change: with its 95 % interval; NaN ends: there is none.
        over: the source of the spread: `seeds`, `validation samples`, or "" where there is none.
        seeds: of the side that has fewer.
    """

    change: Interval
    over: str
    seeds: int


def worse_than_smallest(group: Group, quality: Quality) -> dict[int, Difference]:
    """How much worse each batch size ends than the smallest.

    With three seeds or more of both by Welch's interval over seeds. With one seed of either by the standard errors over
    validation samples, which the runs share, so that it is rather too wide; it does not cover seeds.
    """
    smallest, *others = group.by_batch
    base = _ended(group.by_batch[smallest], quality)
    if not base:
        return {}
    sign = -1.0 if quality.higher_is_better else 1.0
    found = {}
    for size in others:
        runs = _ended(group.by_batch[size], quality)
        if not runs:
            continue
        first, second = (last_values(side, quality.key) for side in (base, runs))
        change, seeds = _signed(welch_difference(first, second), sign), min(len(first), len(second))
        if seeds == 1:
            half = _TWO_SIDED * math.hypot(_error_of_mean(base, quality), _error_of_mean(runs, quality))
            change = Interval(change.value, change.value - half, change.value + half)
        over = "" if math.isnan(change.low) else "seeds" if seeds > 1 else "validation samples"
        widest = quality.high - quality.low
        found[size] = Difference(clipped(change, -widest, widest), over, seeds)
    return found


def _ended(runs: Sequence[RunRecord], quality: Quality) -> list[RunRecord]:
    return [run for run in runs if run.status != "diverged" and run.last(quality.key) is not None]


def _error_of_mean(runs: Sequence[RunRecord], quality: Quality) -> float:
    """Over validation samples, not over seeds: the runs share the samples, so that more of them do not help."""
    key = stderr_key(quality.key)
    errors = [run.last(key) if key else None for run in runs]
    known = [error for error in errors if error is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _signed(one: Interval, sign: float) -> Interval:
    ends = sorted((sign * one.low, sign * one.high)) if not math.isnan(one.low) else (math.nan, math.nan)
    return Interval(sign * one.value + 0.0, *ends)


def interval_columns(intervals: Iterable[Interval]) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Values and both ends as columns of a line; no ends where none is known.

    >>> interval_columns([Interval(1.0, 0.5, 2.0), Interval(3.0, math.nan, math.nan)])
    ([1.0, 3.0], [0.5, None], [2.0, None])
    """
    values, low, high = (numbers(side) for side in zip(*map(astuple, intervals), strict=True))
    return (values, low, high) if any(end is not None for end in (*low, *high)) else (values, None, None)


def batch_figures(groups: Sequence[Group]) -> list[Diagram]:
    """Final validation and generalization gaps against the batch size.

    A study's runs have none: they stop at its target, so that their last values are the target.
    """
    groups = [group for group in groups if not group.study]
    figures = [
        _against_batch(groups, ACCURACY, "accuracy_of_batch", "Validation accuracy at the end against batch size"),
        _against_batch(groups, LOSS, "loss_of_batch", "Validation loss at the end against batch size"),
        _against_batch(
            groups, ACCURACY_GAP, "accuracy_gap_of_batch", "Generalization gap (accuracy) against batch size"
        ),
        _against_batch(groups, LOSS_GAP, "loss_gap_of_batch", "Generalization gap (loss) against batch size"),
    ]
    return [one for one in figures if one]


def _against_batch(groups: Sequence[Group], quality: Quality, name: str, title: str) -> Diagram | None:
    lines = []
    for group in groups:
        found = {size: outcome(runs, quality) for size, runs in group.by_batch.items()}
        known = {size: one for size, one in found.items() if one}
        if known:
            values, low, high = interval_columns(known.values())
            line = Line(group.optimizer, list(known), values, low, high, style="both", optimizer=group.optimizer)
            lines.append(line)
    if not lines:
        return None
    caption = (
        "Bands: 95 %, over three seeds or more of a batch size, of one by the standard error over validation samples; "
        "two have none."
    )
    return Diagram(name, title, _BATCH, Axis(quality.label, quality.unit), tuple(lines), caption)

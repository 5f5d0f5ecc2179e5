"""The large-batch gap: validation after training with a large batch against a small one, at a matched point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import LEAST_SEEDS, Array, Interval

MATCHES = {
    "samples": "equal samples seen",
    "steps": "equal optimizer steps",
    "train_loss": "equal training loss",
}


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run, in order, [k] each.

    Attributes:
        samples: samples consumed before each evaluation.
        steps: optimizer steps before each evaluation.
        train_loss, val_loss: evaluated losses.
        val_accuracy: evaluated accuracies, or None if the loss has no accuracy.
    """

    samples: Array
    steps: Array
    train_loss: Array
    val_loss: Array
    val_accuracy: Array | None


@dataclass(frozen=True)
class LargeBatchGap:
    """How much worse the large batch is on validation at a matched point; positive means worse.

    Attributes:
        match: a key of `MATCHES`.
        at: samples, steps or training loss at which the runs are compared; None if no point is common to all runs.
        loss: validation loss, large batch minus small batch, with a 95 % interval over seeds. Its ends are NaN if a
            side has fewer than 3 seeds, or no seed differs.
        accuracy: accuracy, small batch minus large batch, in [-1, 1]; None without accuracies.
        reason: why no point is common to all runs; else "".
    """

    match: str
    at: float | None
    loss: Interval | None
    accuracy: Interval | None
    reason: str = ""


def large_batch_gap(small: Sequence[Evaluations], large: Sequence[Evaluations], *, match: str) -> LargeBatchGap:
    """Validation of large-batch against small-batch runs, at a point that all of them have reached.

    - "samples" and "steps": the last position that all runs have reached.
    - "train_loss": the lowest training loss that all runs have reached, each at its first time. Keskar et al. compare
      there, since a run that fits the training set less cannot show how well its minimum generalizes.

    Values between evaluations are interpolated linearly; training losses on their running minimum, since a run may
    pass the same loss several times.

    Runs of a side are replicates (seeds; see `merge_reruns`): the interval is Welch's for two means with unequal
    variances. It covers seeds, not the choice of validation samples, which the runs share.

    The generalization gap is something else: the difference between validation and training of *one* model.

    Raises:
        ValueError: if a side has no run, a run has no evaluation, or `match` is not a key of `MATCHES`.

    Source: Keskar et al. 2017, "On large-batch training for deep learning: generalization gap and sharp minima".
    """
    if match not in MATCHES:
        raise ValueError(f"match={match!r}: choose one of {', '.join(MATCHES)}.")
    runs = [*small, *large]
    if not small or not large or not all(len(run.samples) for run in runs):
        raise ValueError(f"{len(small)} small-batch and {len(large)} large-batch runs: both need one with evaluations.")
    curves = [_curve(run, match) for run in runs]
    first, last = max(curve[0] for curve in curves), min(curve[-1] for curve in curves)
    if first > last:
        return LargeBatchGap(match, None, None, None, _apart(match, first, last))
    at = -last if match == "train_loss" else last

    def difference(values: Sequence[Array]) -> Interval:
        there = [_value_at(curve, one, last) for curve, one in zip(curves, values, strict=True)]
        return welch_difference(there[: len(small)], there[len(small) :])

    loss = difference([run.val_loss for run in runs])
    accuracies = [run.val_accuracy for run in runs if run.val_accuracy is not None]
    fall = difference(accuracies) if len(accuracies) == len(runs) else None
    accuracy = fall and clipped(Interval(0.0 - fall.value, 0.0 - fall.high, 0.0 - fall.low), -1.0, 1.0)
    return LargeBatchGap(match, at, loss, accuracy)


def welch_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of the second minus mean of the first, with Welch's 95 % interval.

    Its ends are NaN if a side has fewer than 3 values, or all values of each side are equal: accuracies over a few
    hundred samples may be equal by chance, which is no certainty.

    Source: Welch 1947, "The generalization of 'Student's' problem when several different population variances are
    involved"; degrees of freedom by Satterthwaite 1946.

    >>> found = welch_difference([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])  # t(4) = 2.776, error sqrt(2/3)
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (3.0, 0.733, 5.267)
    """
    from scipy.special import stdtrit

    value = math.fsum(second) / len(second) - math.fsum(first) / len(first)
    if min(len(first), len(second)) < LEAST_SEEDS:
        return Interval(value, math.nan, math.nan)
    one, other = (float(np.var(values, ddof=1)) / len(values) for values in (first, second))
    if one + other == 0.0:
        return Interval(value, math.nan, math.nan)
    freedom = (one + other) ** 2 / (one**2 / (len(first) - 1) + other**2 / (len(second) - 1))
    half_width = float(stdtrit(freedom, 0.975)) * math.sqrt(one + other)
    return Interval(value, value - half_width, value + half_width)


def clipped(one: Interval, low: float, high: float) -> Interval:
    """Clip an interval to [low, high]; NaN ends stay NaN.

    >>> clipped(Interval(0.9, 0.7, 1.1), 0.0, 1.0)
    Interval(value=0.9, low=0.7, high=1.0)
    """
    ends = (end if math.isnan(end) else min(max(end, low), high) for end in (one.low, one.high))
    return Interval(one.value, *ends)


def merge_reruns(runs: Sequence[Evaluations]) -> tuple[Evaluations, int]:
    """Average reruns of one seed: the mean of those that end at the same, largest position, and their number."""
    longest = max(runs, key=lambda run: (run.samples[-1], len(run.samples)))
    kept = [run for run in runs if np.array_equal(run.samples, longest.samples)]
    accuracies = [run.val_accuracy for run in kept if run.val_accuracy is not None]
    merged = Evaluations(
        longest.samples,
        longest.steps,
        np.mean([run.train_loss for run in kept], axis=0),
        np.mean([run.val_loss for run in kept], axis=0),
        np.mean(accuracies, axis=0) if len(accuracies) == len(kept) else None,
    )
    return merged, len(kept)


def _curve(run: Evaluations, match: str) -> Array:
    """The matched quantity, non-decreasing: samples, steps, or minus the lowest training loss so far."""
    if match == "samples":
        return run.samples
    if match == "steps":
        return run.steps
    return np.maximum.accumulate(-run.train_loss)


def _value_at(curve: Array, values: Array, point: float) -> float:
    """`values` where the curve first reaches `point`, which lies in its range; linear between two evaluations."""
    after = int(np.searchsorted(curve, point, side="left"))
    if curve[after] == point or after == 0:
        return float(values[after])
    share = (point - curve[after - 1]) / (curve[after] - curve[after - 1])
    # On a flat part of the curve the last evaluation before the point counts.
    return float(values[after - 1] + share * (values[after] - values[after - 1]))


def _apart(match: str, first: float, last: float) -> str:
    if match == "train_loss":
        return (
            f"one run is below a training loss of {-first:.4g} at its first evaluation, and another never gets below "
            f"{-last:.4g}: evaluate more often, or train longer"
        )
    return f"one run ends at {last:,.0f} {match}, another is first evaluated at {first:,.0f}: evaluate more often"

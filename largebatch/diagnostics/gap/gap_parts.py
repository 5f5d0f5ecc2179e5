"""Decompose the difference between the logged training loss and the validation loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.intervals import Array, Interval, percentile_interval, resampled_ratios


@dataclass(frozen=True)
class PerSample:
    """Sums of every sample under one condition, float64 [n].

    Attributes:
        loss: summed loss of each sample.
        units: units of each sample: 1, its valid tokens, or the sum of their weights.
        correct: correct units of each sample; None if the loss has no accuracy.
        counted: denominator of the accuracy of each sample; None: the units.
    """

    loss: Array
    units: Array
    correct: Array | None
    counted: Array | None = None

    @property
    def counts(self) -> Array:
        """The denominator of the accuracy."""
        return self.units if self.counted is None else self.counted

    @property
    def mean_loss(self) -> float:
        """Loss per unit."""
        return math.fsum(self.loss) / math.fsum(self.units)

    @property
    def accuracy(self) -> float | None:
        """Fraction of correct units, or None."""
        return None if self.correct is None else math.fsum(self.correct) / math.fsum(self.counts)


@dataclass(frozen=True)
class Part:
    """How much worse one condition is than the condition before it; positive means worse.

    Attributes:
        name: name of the change.
        loss: rise of the loss; None if the change does not apply, so that the part is exactly 0.
        accuracy: fall of the accuracy, as a fraction; None likewise, or without accuracies.
    """

    name: str
    loss: Interval | None
    accuracy: Interval | None


@dataclass(frozen=True)
class GapParts:
    """A naive gap and its parts.

    Attributes:
        parts: parts in order; their losses add up to the loss of `naive`, and so do their accuracies.
        naive: validation against the first condition, that is against the logged training loss.
        generalization_gap: validation against the same training samples in eval mode, with the weights' own statistics
            and the original labels, as in `generalization_gap`, but with bootstrap intervals.
        train_loss, train_accuracy: means under the first condition.
        val_loss, val_accuracy: means of the validation samples.
    """

    parts: tuple[Part, ...]
    naive: Part
    generalization_gap: Part
    train_loss: float
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float | None


def decompose_gap(
    first: PerSample,
    changes: Sequence[tuple[str, PerSample | None]],
    validation: PerSample,
    *,
    num_resamples: int,
    seed: int,
    evaluated: str | None = None,
) -> GapParts:
    """Split validation loss minus training loss into the effects of single changes, made one after the other.

    The chain goes from the logged training loss to the validation loss. Each part is the later condition minus the
    earlier one, so that the parts add up exactly: b - a, c - b, d - c, e - d make e - a. The size of a part depends on
    the order of the changes: first those to the samples, then those to the model.

    All training conditions use the same samples, and their intervals are paired: the same resamples under both
    conditions. Validation samples are resampled independently. Intervals cover the choice of samples for these weights.

    Args:
        first: training samples under the conditions of the logged loss.
        changes: (name, the same samples after one more change, or None if it does not apply).
        validation: validation samples under the last condition.
        num_resamples: resamples of the bootstrap.
        seed: seed of the bootstrap.
        evaluated: name of the change that completes the conditions of evaluation; None: the last.

    Raises:
        ValueError: if training conditions differ in their number of samples, or only one side has accuracies.

    >>> ones = np.ones(2)
    >>> train, plain, val = (PerSample(np.array(l), ones, None) for l in ([3.0, 5.0], [1.0, 2.0], [2.0, 2.0]))
    >>> found = decompose_gap(train, [("augmentation", plain), ("train mode", None)], val, num_resamples=100, seed=0)
    >>> [(part.name, part.loss and part.loss.value) for part in found.parts]
    [('augmentation', -2.5), ('train mode', None), ('generalization', 0.5)]
    >>> found.naive.loss.value
    -2.0
    """
    conditions = [first]
    for _, after in changes:
        conditions.append(conditions[-1] if after is None else after)
    _check([*conditions, validation])
    names = [name for name, _ in changes]
    last = names.index(evaluated) + 1 if evaluated is not None else len(names)
    steps = [(name, number, number + 1) for number, name in enumerate(names)]
    end = len(conditions)
    steps += [("generalization", end - 1, end), ("naive", 0, end), ("generalization_gap", last, end)]
    loss, accuracy = _differences(steps, [*conditions, validation], num_resamples, seed)
    *parts, naive, gap = (Part(step[0], *both) for step, *both in zip(steps, loss, accuracy, strict=True))
    return GapParts(
        tuple(parts), naive, gap, first.mean_loss, first.accuracy, validation.mean_loss, validation.accuracy
    )


def _differences(
    steps: Sequence[tuple[str, int, int]], conditions: Sequence[PerSample], num_resamples: int, seed: int
) -> tuple[list[Interval | None], list[Interval | None]]:
    """Rise of the loss and fall of the accuracy for each (name, before, after); None if both are the same array."""
    count = len(conditions)
    losses = [one.loss for one in conditions]
    wrongs = [-one.correct for one in conditions if one.correct is not None]
    ratios = _resampled(conditions, num_resamples, seed)
    means = [
        math.fsum(values) / math.fsum(whole)
        for values, whole in zip([*losses, *wrongs], _bottoms(conditions), strict=False)
    ]

    def difference(before: int, after: int) -> Interval:
        return percentile_interval(means[after] - means[before], ratios[:, after] - ratios[:, before])

    rises: list[Interval | None] = []
    falls: list[Interval | None] = []
    for _, before, after in steps:
        one, other = conditions[before], conditions[after]
        rises.append(None if one.loss is other.loss else difference(before, after))
        falls.append(None if one.correct is other.correct else difference(count + before, count + after))
    return rises, falls


def _resampled(conditions: Sequence[PerSample], num_resamples: int, seed: int) -> Array:
    """Mean losses, then minus accuracies if there are any, of all conditions over resamples, [num_resamples, k]."""
    *train, validation = conditions
    sides = []
    # Two streams, because one stream would give data sets of equal size the same resamples.
    for part, key in ((train, seed), ([validation], seed ^ 1)):
        tops = [one.loss for one in part] + [-one.correct for one in part if one.correct is not None]
        units = _bottoms(part)[: len(tops)]
        sides.append(
            resampled_ratios(np.stack(tops, axis=1), np.stack(units, axis=1), num_resamples=num_resamples, seed=key)
        )
    own, other = sides
    columns = [own[:, : len(train)], other[:, :1], own[:, len(train) :], other[:, 1:]]
    return np.concatenate(columns, axis=1)


def _bottoms(conditions: Sequence[PerSample]) -> list[Array]:
    """Denominators of the mean losses of the conditions, then of their accuracies."""
    return [one.units for one in conditions] + [one.counts for one in conditions]


def _check(conditions: Sequence[PerSample]) -> None:
    *train, validation = conditions
    if len({len(one.loss) for one in train}) > 1:
        raise ValueError(f"Conditions of {[len(one.loss) for one in train]} samples: all must use the same samples.")
    if len({one.correct is None for one in conditions}) > 1:
        raise ValueError("Some conditions have accuracies and others have none: measure all with the same loss.")
    for one in (train[0], validation):
        if not one.units.any():
            raise ValueError(f"{len(one.units)} samples with 0 units in total: is every token masked?")

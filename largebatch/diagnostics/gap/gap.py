"""Generalization gap with its standard error, from exact sums over samples."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EvalSums:
    """Sums over evaluated samples that give exact means and standard errors for any split of the samples.

    For each sample, l is its summed loss, u its units (1, its valid tokens, or the sum of their weights), k the
    denominator of its accuracy (its units without weights) and c the number of these that are correct. Batches are
    added with `+`, ranks as tensors by one all-reduce. Every sample must be counted exactly once: a sampler that pads
    the last batch with copies makes means and errors wrong. `EvalSums()` is the empty sum.

    The mean loss sum(l)/sum(u) is a ratio of two sums, correlated if samples differ in length. Its standard error is
    that of the ratio estimator by the delta method (Cochran 1977, Sampling Techniques, chapter 6, for an infinite
    population): `var = n/(n-1) * sum((l - m u)^2) / sum(u)^2`, where m is the mean. Independent draws are samples, not
    tokens, since tokens of one sample are correlated. For u = 1 this is the usual s^2/n.

    Attributes:
        num_samples: n.
        units: sum of u.
        loss: sum of l.
        loss_sq: sum of l^2.
        loss_units: sum of l u.
        units_sq: sum of u^2.
        correct: sum of c; None if a part has no count of correct units (regression).
        correct_sq: sum of c^2, or None.
        correct_counted: sum of c k, or None.
        counted: sum of k.
        counted_sq: sum of k^2.

    >>> sums = EvalSums.from_batch(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]), torch.tensor([1, 0]))
    >>> sums.mean_loss, sums.loss_stderr, sums.accuracy
    (2.0, 1.0, 0.5)
    """

    num_samples: int = 0
    units: float = 0.0
    loss: float = 0.0
    loss_sq: float = 0.0
    loss_units: float = 0.0
    units_sq: float = 0.0
    correct: float | None = 0.0
    correct_sq: float | None = 0.0
    correct_counted: float | None = 0.0
    counted: float = 0.0
    counted_sq: float = 0.0

    @classmethod
    def from_batch(
        cls, loss: Tensor, units: Tensor, correct: Tensor | None = None, counted: Tensor | None = None
    ) -> EvalSums:
        """Sums over one batch, in float64.

        Args:
            loss: summed loss per sample, [n].
            units: units per sample, [n].
            correct: correct units per sample, [n], or None.
            counted: denominator of the accuracy per sample, [n]; None: the units.

        Raises:
            ValueError: if the arguments are not vectors of one length.
        """
        return cls.from_tensor(sums_of_batch(loss, units, correct, counted))

    def __add__(self, other: EvalSums) -> EvalSums:
        return EvalSums.from_tensor(self.to_tensor() + other.to_tensor())

    def to_tensor(self) -> Tensor:
        """The eleven sums, float64 [11], for an all-reduce over ranks; None is encoded as NaN."""
        return torch.tensor([math.nan if value is None else value for value in astuple(self)], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, sums: Tensor) -> EvalSums:
        """Inverse of `to_tensor`, from any device."""
        num_samples, *of_loss = sums[:6].tolist()
        counts = [None if math.isnan(count) else count for count in sums[6:9].tolist()]
        return cls(round(num_samples), *of_loss, *counts, *sums[9:].tolist())

    @property
    def mean_loss(self) -> float:
        """Loss per unit, sum(l)/sum(u). Raises ValueError if nothing was evaluated."""
        return self.loss / self._some(self.units)

    @property
    def loss_stderr(self) -> float:
        """Standard error of `mean_loss`; NaN for fewer than two samples."""
        return self._ratio_stderr((self.loss, self.loss_sq, self.loss_units), (self.units, self.units_sq))

    @property
    def accuracy(self) -> float | None:
        """Share of correct units, sum(c)/sum(k), or None. Raises ValueError if nothing was evaluated."""
        return None if self.correct is None else self.correct / self._some(self.counted)

    @property
    def accuracy_stderr(self) -> float | None:
        """Standard error of `accuracy`, or None; NaN for fewer than two samples."""
        if self.correct is None or self.correct_sq is None or self.correct_counted is None:
            return None
        of_correct = self.correct, self.correct_sq, self.correct_counted
        return self._ratio_stderr(of_correct, (self.counted, self.counted_sq))

    def _ratio_stderr(self, tops: tuple[float, float, float], bottoms: tuple[float, float]) -> float:
        """Standard error of sum(top) / sum(bottom), from the sums of top, top^2, top bottom, bottom and bottom^2."""
        (total, total_sq, cross), (whole, whole_sq) = tops, bottoms
        ratio = total / self._some(whole)
        if self.num_samples < 2:
            return math.nan
        residual_sq = total_sq - 2.0 * ratio * cross + ratio**2 * whole_sq
        # Rounding can make it slightly negative if all residuals are 0; NaN must stay NaN.
        residual_sq = 0.0 if residual_sq < 0.0 else residual_sq
        return math.sqrt(self.num_samples / (self.num_samples - 1) * residual_sq) / whole

    def _some(self, total: float) -> float:
        if total == 0.0:
            raise ValueError(
                f"{self.num_samples} samples with 0 units in total: a mean needs at least one unit. Is the data set "
                f"empty, or every label masked?"
            )
        return total


def sums_of_batch(loss: Tensor, units: Tensor, correct: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
    """What `EvalSums.from_batch` adds up, float64 [11] as of `EvalSums.to_tensor`, on the device of `loss`.

    The host does not wait for it. Arguments and errors as for `from_batch`.
    """
    parts = [part for part in (loss, units, correct, counted) if part is not None]
    if any(part.shape != loss.shape or part.dim() != 1 for part in parts):
        raise ValueError(
            f"Shapes {[list(part.shape) for part in parts]}: loss, units and correct hold one number per sample, "
            f"all of shape [n]. Pass loss_per_sample, not its mean."
        )
    l, u = _float64(loss), _float64(units)  # noqa: E741
    k = u if counted is None else _float64(counted)
    unknown = l.new_full((), math.nan)
    of_correct = [unknown] * 3
    if correct is not None:
        c = _float64(correct)
        of_correct = [c.sum(), c.dot(c), c.dot(k)]
    of_loss = [u.sum(), l.sum(), l.dot(l), l.dot(u), u.dot(u)]
    return torch.stack([l.new_full((), len(l)), *of_loss, *of_correct, k.sum(), k.dot(k)])


def _float64(values: Tensor) -> Tensor:
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()  # which has none


@dataclass(frozen=True)
class GeneralizationGap:
    """How much worse a model is on validation than on training samples; positive means worse.

    Attributes:
        loss: L(validation) - L(training), per unit.
        loss_stderr: standard error of `loss`.
        accuracy: accuracy(training) - accuracy(validation), as a fraction; None without accuracies.
        accuracy_stderr: standard error of `accuracy`, or None.
    """

    loss: float
    loss_stderr: float
    accuracy: float | None
    accuracy_stderr: float | None


def generalization_gap(train: EvalSums, validation: EvalSums) -> GeneralizationGap:
    """Gap between training and validation samples of one model, with standard errors.

    The two sets are disjoint draws, so the variances of their means add. The error covers the choice of samples for
    these weights. It does not cover other seeds, and it is too large for the *change* of the gap between two
    evaluations on the same sets, which share their error.

    The gap is meaningful only under these conditions:

    - the same weights in the same mode: evaluation mode, hence no dropout and the same batch-norm statistics;
    - no augmentation, no mixup and no label smoothing, on either side. The running training loss has all of these, and
      averages over older weights: a gap against it can even be negative;
    - a fixed random subset of the training set, as large as the validation set, so that both errors are similar;
    - every sample once: no padded last batch, no mean of batch means.

    The large-batch gap (Keskar et al. 2017) is something else: the difference in *validation* accuracy between runs
    with a small and a large batch.

    Raises:
        ValueError: if one side is empty, or only one has accuracies.

    >>> train = EvalSums.from_batch(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]))
    >>> validation = EvalSums.from_batch(torch.tensor([2.0, 4.0]), torch.tensor([1, 1]))
    >>> gap = generalization_gap(train, validation)
    >>> gap.loss, round(gap.loss_stderr, 6)  # sqrt(1 + 1)
    (1.0, 1.414214)
    """
    if (train.accuracy is None) != (validation.accuracy is None):
        raise ValueError(
            f"Accuracy is {train.accuracy} on training and {validation.accuracy} on validation samples: a gap needs "
            f"both sides measured by the same loss. Evaluate both with the same loss object."
        )
    return GeneralizationGap(
        loss=validation.mean_loss - train.mean_loss,
        loss_stderr=math.hypot(train.loss_stderr, validation.loss_stderr),
        accuracy=_difference(train.accuracy, validation.accuracy),
        accuracy_stderr=_hypot(train.accuracy_stderr, validation.accuracy_stderr),
    )


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _hypot(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else math.hypot(left, right)

"""The loss of mixed samples: s l(y1) + (1 - s) l(y2), of any loss with labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from largebatch.losses.coupled import is_coupled
from largebatch.losses.label_rule import LabelRule
from largebatch.losses.protocol import counted_per_sample


class MixedLabels:
    """`loss` of samples that are a mixture of two: a share s of the first, 1 - s of the second.

    The loss of a sample is s l(y1) + (1 - s) l(y2), and so are its units and its number of correct predictions. So
    label smoothing, class weights and masked labels keep their meaning: the mean over a global batch divides by what
    the labels count, each by its share. For losses that are linear in the labels, such as the cross-entropy of
    probabilities without class weights, it equals the loss of the mixed labels.

    Targets are float64 [n, 3], (y1, y2, s), of class numbers; or [n, 2 C + 1] of numbers for each of C > 1 classes.
    Source: Zhang et al. 2018, "mixup: Beyond empirical risk minimization", equation 1 and section 3.

    Attributes:
        of_one_label: the loss.

    Raises:
        ValueError: if the loss compares samples, or is one of tokens.

    >>> import torch
    >>> from largebatch.losses import CrossEntropy
    >>> loss = MixedLabels(CrossEntropy())
    >>> loss.loss_per_sample(torch.zeros(1, 4), torch.tensor([[0.0, 3.0, 0.25]]))  # log 4, whatever the labels
    tensor([1.3863])
    """

    def __init__(self, loss: Any) -> None:
        if is_coupled(loss) or loss.unit == "token":
            what = "compares the samples of a batch" if is_coupled(loss) else "has labels of tokens"
            raise ValueError(
                f"{type(loss).__name__} {what}: mixup and CutMix mix two samples of one class each. Set "
                "data.augment.mixup and data.augment.cutmix to 0."
            )
        self.of_one_label = loss

    @property
    def unit(self) -> str:
        """As of the loss."""
        unit: str = self.of_one_label.unit
        return unit

    @property
    def fixed_units(self) -> bool:
        """As of the loss: two equal numbers of units have the same mean."""
        fixed: bool = self.of_one_label.fixed_units
        return fixed

    @property
    def ignore_index(self) -> int | None:
        """The label that does not count."""
        return getattr(self.of_one_label, "ignore_index", None)

    @property
    def weight(self) -> Any:
        """Class weights."""
        return getattr(self.of_one_label, "weight", None)

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mixed loss of each sample, [n]."""
        first, second, share = _parted(targets)
        one = self.of_one_label.loss_per_sample(outputs, first)
        other = self.of_one_label.loss_per_sample(outputs, second)
        share = share.to(one.dtype)
        return share * one + (1 - share) * other

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """The mixed number of units of each sample, float64 [n]."""
        first, second, share = _parted(targets)
        count = self.of_one_label.units_per_sample
        return _mixed(count(first), count(second), share)

    def counted_per_sample(self, targets: Tensor) -> Tensor:
        """The mixed denominator of accuracy, float64 [n]."""
        first, second, share = _parted(targets)
        loss = self.of_one_label
        return _mixed(counted_per_sample(loss, first), counted_per_sample(loss, second), share)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """The share of the labels that are predicted, float64 [n]; None if the loss has no accuracy."""
        first, second, share = _parted(targets)
        counts = [self.of_one_label.correct_per_sample(outputs, one) for one in (first, second)]
        return None if counts[0] is None else _mixed(counts[0], counts[1], share)

    def label_rule(self, outputs: Any) -> LabelRule | None:
        """The labels that the loss can score, before they are mixed."""
        rule = getattr(self.of_one_label, "label_rule", None)
        return None if rule is None else rule(outputs)

    def examine(self, outputs: Any, targets: Tensor) -> None:
        """Raise ValueError if the loss has no classes, or cannot be used with these outputs."""
        first, _, _ = _parted(targets)
        if self.of_one_label.correct_per_sample(outputs, first) is None:
            raise ValueError(
                f"{type(self.of_one_label).__name__} has no accuracy, so its targets are no classes: mixup and CutMix "
                "mix classes. Set data.augment.mixup and data.augment.cutmix to 0."
            )
        if (examine := getattr(self.of_one_label, "examine", None)) is not None:
            examine(outputs, first)


def _parted(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of both samples, and the share of the first."""
    half = (targets.shape[1] - 1) // 2
    first, second, share = targets[:, :half], targets[:, half:-1], targets[:, -1].double()
    return (first[:, 0].long(), second[:, 0].long(), share) if half == 1 else (first, second, share)


def _mixed(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """A mean that is exact where both are equal: a number of units that is known in advance must not be rounded."""
    return other.double() + share * (one.double() - other.double())

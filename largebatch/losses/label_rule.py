"""The valid labels of a loss. An invalid one is reported with its sample instead of an index error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelRule:
    """The labels that a loss can score against the outputs of a model.

    Attributes:
        highest: largest label; the smallest is 0.
        ignore_index: an additional label that means "masked"; None if there is none.
        is_share: labels are probabilities, not class numbers.

    >>> LabelRule(9).problem(torch.tensor([3, 10]))[:49]
    'the label 10 is none of the 10 classes, 0 to 9, t'
    """

    highest: int
    ignore_index: int | None = None
    is_share: bool = False

    def problem(self, targets: Tensor) -> str | None:
        """Describe the first invalid label of `targets` (any shape); None if all are valid.

        Class probabilities are not class numbers: they pass.
        """
        if targets.is_floating_point() and not self.is_share:
            if targets.dim() > 0:
                return None
            kind = str(targets.dtype).removeprefix("torch.")
            return f"the label {targets.item()} is {kind}: class numbers are integers. Convert it in the data set."
        fits = (targets >= 0) & (targets <= self.highest)
        if self.ignore_index is not None:
            fits |= targets == self.ignore_index
        if bool(fits.all()):
            return None
        label = targets[~fits].flatten()[0].item()
        if self.is_share:
            return f"the label {label} is not a probability: this loss takes labels from 0 to {self.highest}."
        masked = "" if self.ignore_index is None else f", or {self.ignore_index} for none"
        counted_from_one = label == self.highest + 1
        return (
            f"the label {label} is none of the {self.highest + 1} classes, 0 to {self.highest}, that the model "
            f"scores{masked}. "
            + ("If labels start at 1, subtract 1 in the data set. Else correct" if counted_from_one else "Correct")
            + " the label, give the model as many outputs as there are classes (data.num_classes, data.vocab_size), or "
            "name the label that does not count: loss.ignore_index."
        )


def label_rule(loss: Any, outputs: Any) -> LabelRule | None:
    """The labels that `loss` can score against `outputs`; None if it does not state them or any label is valid."""
    rule = getattr(loss, "label_rule", None)
    return None if rule is None else rule(outputs)


def scored(loss: Any, outputs: Any, targets: Tensor, ids: Sequence[int]) -> Tensor:
    """`loss_per_sample` of samples `ids`.

    Raises:
        ValueError: if a label is invalid; names the sample. Other errors of the loss propagate.
    """
    try:
        losses: Tensor = loss.loss_per_sample(outputs, targets)
    except (LookupError, RuntimeError):
        require_labels(label_rule(loss, outputs), targets, ids)
        raise
    require_labels(label_rule(loss, outputs), targets, ids)
    return losses


def require_labels(rule: LabelRule | None, targets: Tensor, ids: Sequence[int]) -> None:
    """Raise ValueError, with the sample and the rule, if a label of samples `ids` is invalid."""
    if rule is None or rule.problem(targets) is None:
        return
    for sample_id, target in zip(ids, targets, strict=True):
        if problem := rule.problem(target):
            raise ValueError(f"sample {sample_id}: {problem}")


def class_weights(weight: Any) -> tuple[float, ...] | None:
    """Class weights as floats.

    Raises:
        ValueError: if one is negative or not finite, or all are 0.
    """
    if weight is None:
        return None
    values = tuple(float(one) for one in weight)
    if not values or min(values) < 0 or not torch.tensor(values).isfinite().all() or max(values) == 0:
        raise ValueError(f"weight={list(values)}: give one finite number >= 0 per class, not all of them 0.")
    return values

"""The F1 score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from largebatch.losses.cross_entropy import CrossEntropy
from largebatch.losses.labels import labelled_rows
from largebatch.losses.protocol import Loss


@dataclass(frozen=True)
class F1:
    """2 tp / (2 tp + fp + fn), from counts over all samples, as in scikit-learn.

    - macro: the mean over classes that occur among labels or predictions
    - micro: of the counts of all classes together; for one label per sample this is accuracy
    - binary: of class 1 of two, or of the single output of a binary loss

    With a binary loss of torch (`BCEWithLogitsLoss`, `BCELoss`) each output is a class that a sample may have or not.
    Masked labels do not count. Raises ValueError for another average, or `binary` with more classes than two.

    >>> metric = F1("macro")
    >>> sums = metric.sums(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0])).sum(dim=0)
    >>> round(metric.value(sums), 4)  # 2/3 of class 0, 2/3 of class 1, and class 2 does not occur
    0.6667
    """

    higher_is_better: ClassVar[bool] = True
    average: Literal["macro", "micro", "binary"] = "macro"
    loss: Loss = field(default_factory=CrossEntropy, repr=False)

    def __post_init__(self) -> None:
        if self.average not in ("macro", "micro", "binary"):
            raise ValueError(f"average={self.average!r}: choose macro, micro or binary.")

    def for_loss(self, loss: Loss) -> F1:
        """Labels as this loss reads them."""
        return F1(self.average, loss)

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """True positives, false positives and false negatives of each class, [n, 3 C]."""
        predicted, true = self._members(outputs, targets)
        if self.average == "binary":
            if predicted.shape[-1] > 2:
                raise ValueError(f"F1: average=binary with {predicted.shape[-1]} classes. Choose macro or micro.")
            predicted, true = predicted[..., -1:], true[..., -1:]
        parts = predicted & true, predicted & ~true, ~predicted & true
        return torch.cat([part.sum(dim=1) for part in parts], dim=1)

    def value(self, sums: Tensor) -> float:
        """F1 of the counts; 0 without any true positive."""
        hits, false_positives, false_negatives = sums.reshape(3, -1)
        if self.average == "micro":
            hits, false_positives, false_negatives = (one.sum(0, keepdim=True) for one in sums.reshape(3, -1))
        whole = 2 * hits + false_positives + false_negatives
        occurs = whole > 0
        return float((2 * hits[occurs] / whole[occurs]).mean())

    def _members(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each label of each sample is predicted and given, by class, two bool [n, labels, C]."""
        if (decisions := getattr(self.loss, "decisions", None)) and (pair := decisions(outputs, targets)) is not None:
            predicted, given = (one.reshape(len(one), 1, -1) for one in pair)
            return predicted, given
        logits, labels, counts = labelled_rows(self.loss, outputs, targets)
        classes = torch.arange(logits.shape[-1], device=logits.device)
        predicted = (logits.argmax(dim=-1, keepdim=True) == classes) & counts.unsqueeze(-1)
        return predicted, (labels.unsqueeze(-1) == classes) & counts.unsqueeze(-1)

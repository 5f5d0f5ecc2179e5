"""Top-k accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.losses.cross_entropy import CrossEntropy
from largebatch.losses.labels import labelled_rows
from largebatch.losses.protocol import Loss


@dataclass(frozen=True)
class TopK:
    """Share of labels that are among the k largest logits; k=1 is accuracy. Masked labels do not count.

    Raises:
        ValueError: for k below 1, or in `sums` for k that is not below the number of classes.

    >>> metric = TopK(k=2)
    >>> metric.value(metric.sums(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2])).sum(dim=0))
    0.5
    """

    higher_is_better: ClassVar[bool] = True
    k: int = 5
    loss: Loss = field(default_factory=CrossEntropy, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: must be 1 or more.")

    def for_loss(self, loss: Loss) -> TopK:
        """Labels as this loss reads them."""
        return TopK(self.k, loss)

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Hits and labels of each sample, [n, 2]."""
        logits, labels, counts = labelled_rows(self.loss, outputs, targets)
        if self.k >= logits.shape[-1]:
            raise ValueError(f"TopK: k={self.k} of {logits.shape[-1]} classes is right for any label. Lower k.")
        hits = (logits.topk(self.k, dim=-1).indices == labels.unsqueeze(-1)).any(dim=-1) & counts
        return torch.stack([hits.sum(dim=1), counts.sum(dim=1)], dim=1)

    def value(self, sums: Tensor) -> float:
        """Hits over labels."""
        return float(sums[0] / sums[1])

"""Perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.losses.protocol import Loss


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean loss per token, over all tokens: not the mean of exp over batches, which is larger.

    `loss` is that of the run, without label smoothing, so its masks, shift and weights count.
    """

    higher_is_better: ClassVar[bool] = False
    loss: Loss | None = None

    def for_loss(self, loss: Loss) -> Perplexity:
        """Of this loss."""
        return Perplexity(loss)

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss and units of each sample, [n, 2]."""
        if self.loss is None:
            raise ValueError("Perplexity is of a loss. Give Perplexity(NextToken()).")
        loss, units = self.loss.loss_per_sample(outputs, targets), self.loss.units_per_sample(targets)
        return torch.stack([loss.double(), units.double()], dim=1)

    def value(self, sums: Tensor) -> float:
        """exp(loss / units); infinite where it exceeds a float."""
        mean = float(sums[0] / sums[1])
        return math.inf if mean > _LARGEST else math.exp(mean)


_LARGEST = 709.0  # exp of more exceeds a float64

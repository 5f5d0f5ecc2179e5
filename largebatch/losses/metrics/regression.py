"""Metrics of regression: outputs and targets of one shape, [n, ...]; [n] and [n, 1] are equivalent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.losses.protocol import prediction
from largebatch.losses.regression import without_unit_column


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean of |f - y| over all numbers.

    >>> metric = MeanAbsoluteError()
    >>> metric.value(metric.sums(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0])).sum(dim=0))
    2.0
    """

    higher_is_better: ClassVar[bool] = False

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum and count of the absolute errors of each sample, [n, 2]."""
        predicted, given = _rows(outputs, targets)
        errors = (predicted - given).abs()
        return torch.stack([errors.sum(dim=1), torch.full_like(errors[:, 0], errors.shape[1])], dim=1)

    def value(self, sums: Tensor) -> float:
        """Sum over count."""
        return float(sums[0] / sums[1])


@dataclass(frozen=True)
class R2:
    """1 - sum (y - f)^2 / sum (y - mean y)^2 of each output, and the mean over outputs, as in scikit-learn.

    NaN, so left out of the rows, where an output's targets are all the same.

    >>> metric = R2()
    >>> metric.value(metric.sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])).sum(dim=0))
    0.5
    """

    higher_is_better: ClassVar[bool] = True

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """Squared error, target, squared target and 1, of each output, [n, 4 outputs]."""
        predicted, given = _rows(outputs, targets)
        return torch.cat([(predicted - given).square(), given, given.square(), torch.ones_like(given)], dim=1)

    def value(self, sums: Tensor) -> float:
        """R^2 of the sums."""
        errors, targets, squares, counts = sums.reshape(4, -1)
        spread = squares - targets.square() / counts
        known = torch.where(spread > _ROUNDED * squares, 1 - errors / spread, torch.nan)
        return float(known.mean())


_ROUNDED = 1e-13  # of the sum of squares: below it a spread is rounding


def _rows(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    predicted = prediction(outputs)
    if without_unit_column(predicted.shape) != without_unit_column(targets.shape):
        raise ValueError(
            f"outputs {list(predicted.shape)} and targets {list(targets.shape)}: a metric of regression needs the same "
            "shape (or [n] and [n, 1]). Choose another metric, or change the model's outputs."
        )
    return predicted.double().reshape(len(predicted), -1), targets.double().reshape(len(targets), -1)

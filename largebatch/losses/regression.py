"""Losses without classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.losses.protocol import float32_or_wider, prediction


@dataclass(frozen=True)
class SquaredError:
    """Half the squared error of regression, 0.5 |f - y|^2: outputs and targets of one shape, [n, ...].

    Half, so that the gradient with respect to f is f - y. [n] and [n, 1] are equivalent; nothing is broadcast.

    Raises:
        ValueError: if outputs and targets differ in shape.

    >>> SquaredError().loss_per_sample(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([12.5000])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Half the squared error of each sample, [n]."""
        predicted = prediction(outputs)
        if without_unit_column(predicted.shape) != without_unit_column(targets.shape):
            raise ValueError(
                f"SquaredError got outputs {list(predicted.shape)} and targets {list(targets.shape)}: both need the "
                f"same shape (or [n] and [n, 1]). Change the model's num_outputs or the data set's targets."
            )
        difference = float32_or_wider(predicted) - float32_or_wider(targets).reshape(predicted.shape)
        return 0.5 * difference.square().unsqueeze(1).flatten(1).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> None:
        """None: regression has no accuracy."""
        return


@dataclass(frozen=True)
class OutputIsLoss:
    """For models that return the loss of every sample themselves, such as `largebatch.models.Quadratic`: outputs [n].

    Only the number of targets is used. Raises ValueError if the number of outputs differs from it.

    >>> OutputIsLoss().loss_per_sample(torch.tensor([3.0, -1.0]), torch.zeros(2))
    tensor([ 3., -1.])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """The outputs, [n]."""
        losses = prediction(outputs)
        if losses.shape != targets.shape[:1]:
            raise ValueError(
                f"OutputIsLoss got outputs {list(losses.shape)} for {len(targets)} samples: the model must return one "
                f"loss per sample, [n]. Choose a model that does, such as model=quadratic, or another loss."
            )
        return float32_or_wider(losses)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> None:
        """None: there are no predictions."""
        return


def without_unit_column(shape: torch.Size) -> torch.Size:
    """[n, 1] as [n], other shapes as they are."""
    return shape[:1] if shape[1:] == (1,) else shape

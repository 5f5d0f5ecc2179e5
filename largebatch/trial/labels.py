"""Whether the labels of a set can be scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from largebatch.losses import Loss
from largebatch.raised import told


def check_labels(dataset: Any, outputs: Any, targets: Tensor, loss: Loss) -> None:
    """Score outputs against the smallest and the largest label of the whole set: they may come at any step.

    Raises:
        ValueError: if that cannot be done.
    """
    for label in getattr(dataset, "label_range", None) or ():
        try:
            loss.loss_per_sample(outputs, torch.full_like(targets, label))
        except Exception as error:  # noqa: PERF203
            smallest, largest = dataset.label_range
            raise ValueError(
                f"the labels lie from {smallest} to {largest}, and the model's outputs cannot be scored against "
                f"{label} ({told(error)}). Give the model as many outputs as there are classes (data.num_classes, "
                "data.vocab_size), or correct the labels."
            ) from error

"""What a loss is: sums over a sample's units, and the number of those units.

A unit is what the mean loss is a mean over: a sample, a label, a token, a number; it may have a weight. Nothing here
divides: training multiplies the sums by one weight, and evaluation divides the sum over all samples by the units of all
samples. That is what makes unequal micro-batches, unequal ranks and masked labels exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """What training and evaluation ask of a loss.

    `outputs` is what the model returned: a tensor, or an object with a tensor `.logits` (Hugging Face). The first
    dimension of outputs and targets counts samples, n. A loss of one's own is a class like this one:

        class Absolute:
            unit, fixed_units = "sample", True

            def loss_per_sample(self, outputs, targets):
                return (outputs - targets).abs().flatten(1).sum(dim=1)

            def units_per_sample(self, targets):
                return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

            def correct_per_sample(self, outputs, targets):
                return None

    Some members are asked for where they are: `counted_per_sample(targets)`, what accuracy is a share of where that is
    not the units (they have weights); `label_rule(outputs)`, a `LabelRule`; `examine(outputs, targets)`, which raises
    ValueError where the loss cannot be used with what a few samples gave; and `mean_of(outputs, targets)`, the
    mean of a batch by another way, for `largebatch verify`.
    """

    @property
    def unit(self) -> str:
        """What is counted: "sample", "label", "token" or "element"."""

    @property
    def fixed_units(self) -> bool:
        """True if every sample has the same number of units, known from the shape of the targets alone."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the loss over the units of each sample, [n], float32 or wider, differentiable."""

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of units of each sample, int64 [n]; the sum of their weights, float64, where they have some."""

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Number of correctly predicted units of each sample, int64 [n]; None if there is no such thing."""


def units_are_fixed(loss: Loss, dataset: Any) -> bool:
    """Whether the units of a global batch follow from its size, so that no rank has to count or ask.

    So it is for a loss with fixed units, and for one whose labels may be masked on a data set whose `label_range` does
    not hold the masking value: classes of a folder, a stream of tokens without padding. A loss of tokens needs a set in
    memory for it, where samples have one shape. With class weights every sample has units of its own.
    """
    if loss.fixed_units:
        return True
    masked, labels = getattr(loss, "ignore_index", None), getattr(dataset, "label_range", None)
    if masked is None or labels is None or getattr(loss, "weight", None) is not None:
        return False
    if loss.unit == "token" and not hasattr(dataset, "fetch"):
        return False
    return not labels[0] <= masked <= labels[1]


def counted_per_sample(loss: Loss, targets: Tensor) -> Tensor:
    """What the accuracy is a share of: the units of each sample, or what the loss counts instead, [n]."""
    own = getattr(loss, "counted_per_sample", None)
    counted: Tensor = loss.units_per_sample(targets) if own is None else own(targets)
    return counted


def prediction(outputs: Any) -> Tensor:
    """The tensor that a loss takes from what a model returned.

    Raises:
        ValueError: if there is none, or not one alone.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        kind += f" with {', '.join(map(str, outputs))}"
    elif isinstance(outputs, (tuple, list)):
        kind += f" of {', '.join(type(one).__name__ for one in outputs)}"
    raise ValueError(
        f"The model returned a {kind} without a tensor in .logits: a loss needs a tensor or an object with .logits. "
        "Return the logits alone from the model's forward, choose an AutoModel class with a head, or write a loss that "
        "takes what this model returns (see `largebatch.losses.Loss`)."
    )


def float32_or_wider(values: Tensor) -> Tensor:
    """The values in float64 if they are, else in float32."""
    return values if values.dtype == torch.float64 else values.float()

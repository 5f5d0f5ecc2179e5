"""The interface of a loss: sums over a sample's units, and the number of those units.

The mean loss is a mean over units: samples, labels, tokens or numbers, each with an optional weight. A loss never
divides: training multiplies the sums by one factor, and evaluation divides the sum over all samples by the units of all
samples. So unequal micro-batches, unequal ranks and masked labels are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """The interface of a loss, for training and evaluation.

    `outputs` are the model's: a tensor, or an object with a tensor `.logits` (Hugging Face). The first dimension of
    outputs and targets counts samples, n. A loss of your own is a class like this one:

        class Absolute:
            unit, fixed_units = "sample", True

            def loss_per_sample(self, outputs, targets):
                return (outputs - targets).abs().flatten(1).sum(dim=1)

            def units_per_sample(self, targets):
                return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

            def correct_per_sample(self, outputs, targets):
                return None

    Optional members:

    - `counted_per_sample(targets)`: the denominator of accuracy, if units have weights.
    - `label_rule(outputs)`: a `LabelRule` of the valid labels.
    - `examine(outputs, targets)`: raises ValueError if the loss cannot be used with these outputs of a few samples.
    - `mean_of(outputs, targets)`: the mean over a batch, computed independently, for `largebatch verify`.
    - `widens_outputs`: True if the loss copies outputs in bfloat16 or float16 to float32 itself, piece by piece. Else
      it gets a float32 copy of all of them. A subclass says so anew.
    """

    @property
    def unit(self) -> str:
        """Name of a unit: "sample", "label", "token" or "element"."""

    @property
    def fixed_units(self) -> bool:
        """True if every sample has the same number of units, known from the shape of the targets alone."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the loss over the units of each sample, [n], float32 or wider, differentiable."""

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of units of each sample, int64 [n]; if units have weights, the sum of these, float64 [n]."""

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Number of correctly predicted units of each sample, int64 [n]; None if the loss has no accuracy."""


def units_are_fixed(loss: Loss, dataset: Any) -> bool:
    """Whether the units of a global batch follow from its size, so that ranks need not count and sum them.

    False for a set with a `collate_fn` of its own, whose batches may be padded to any length.

    True for a loss with fixed units, and for a loss with masking on a data set whose `label_range` excludes the masking
    value: classes of a folder, a stream of tokens without padding. A token loss also needs a data set in memory, whose
    samples have one shape. False with class weights, where units differ between samples.
    """
    if hasattr(dataset, "collated"):
        return False
    if loss.fixed_units:
        return True
    masked, labels = getattr(loss, "ignore_index", None), getattr(dataset, "label_range", None)
    if masked is None or labels is None or getattr(loss, "weight", None) is not None:
        return False
    if loss.unit == "token" and not hasattr(dataset, "fetch"):
        return False
    return not labels[0] <= masked <= labels[1]


def counted_per_sample(loss: Loss, targets: Tensor) -> Tensor:
    """The denominator of accuracy: the units of each sample, or the loss's own `counted_per_sample`, [n]."""
    own = getattr(loss, "counted_per_sample", None)
    counted: Tensor = loss.units_per_sample(targets) if own is None else own(targets)
    return counted


def widens_outputs(loss: Loss) -> bool:
    """Whether the class of `loss` takes outputs in bfloat16 and float16; not inherited, as a subclass may not."""
    of_one_label = getattr(loss, "of_one_label", loss)  # of `MixedLabels`
    return bool(vars(type(of_one_label)).get("widens_outputs", False))


def prediction(outputs: Any) -> Tensor:
    """The tensor among the model's outputs that a loss takes.

    Raises:
        ValueError: if there is none, or more than one.
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
        "Return only the logits from the model's forward, choose an AutoModel class with a head, or write a loss that "
        "takes these outputs (see `largebatch.losses.Loss`)."
    )


def float32_or_wider(values: Tensor) -> Tensor:
    """float64 values unchanged, others in float32."""
    return values if values.dtype == torch.float64 else values.float()

"""Losses of torch, and modules like them: called with reduction="none", and divided as their own mean divides."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from largebatch.losses.label_rule import LabelRule
from largebatch.losses.labels import correct_labels, label_units, labels_for, logits_of_classes
from largebatch.losses.protocol import float32_or_wider, prediction
from largebatch.losses.regression import without_unit_column

Units = Literal["label", "element", "sample"]

_OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss,
    nn.SoftMarginLoss, nn.HingeEmbeddingLoss, nn.KLDivLoss,
)  # fmt: skip
_OF_SAMPLES = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_CLOSE = 1e-4  # of the sum of the parts' sizes: own modules may compute in float32
_OWN_LOSS = (
    "Write a class with loss_per_sample, units_per_sample and correct_per_sample, ten lines: see "
    "`largebatch.losses.Loss`."
)


class ModuleLoss:
    """A `torch.nn` loss, or a module of one's own with a `reduction`, as a `Loss`.

    The module is copied and its `reduction` set to "none": that gives the parts of each sample. The mean that training
    minimises is the module's own, over the whole global batch: with reduction "mean" over the numbers that it returns
    per sample (elements, as `MSELoss` and `BCEWithLogitsLoss` do, or one of each sample), or for `CrossEntropyLoss` and
    `NLLLoss` over the weights of the labels that count; with "batchmean" over samples. What a module divides
    by is known of those of torch and found out for others by `examine`, which compares the module's mean of
    some samples with it.

    Buffers (class weights) follow the outputs to their device and type. [n] and [n, 1] are the same thing; nothing is
    broadcast. Integer targets are class numbers, or numbers where the module compares numbers.

    Args:
        module: with reduction "mean" (torch's default) or "batchmean".

    Raises:
        ValueError: for another reduction, a module with parameters to train, or shapes that do not fit.

    >>> loss = ModuleLoss(nn.MSELoss())
    >>> targets = torch.zeros(1, 2)
    >>> loss.loss_per_sample(torch.tensor([[3.0, 4.0]]), targets), loss.units_per_sample(targets)
    (tensor([25.]), tensor([2]))
    """

    def __init__(self, module: nn.Module) -> None:
        name = type(module).__name__
        self._reduction = str(getattr(module, "reduction", None))
        if self._reduction not in ("mean", "batchmean"):
            raise ValueError(
                f"{name} has reduction={self._reduction!r}: training minimises a mean over the global batch, whatever "
                "its size, and the module has to say which one. Use reduction=mean, torch's default."
            )
        if trained := [key for key, one in module.named_parameters() if one.requires_grad]:
            raise ValueError(
                f"{name} has parameters to train ({', '.join(trained[:3])}), which the optimizer of a run does not "
                "have. Make it a part of the model, whose forward then returns the loss of every sample (loss=output)."
            )
        self._mean = module
        self._parts = copy.deepcopy(module)
        self._parts.reduction = "none"  # type: ignore[assignment]
        self._placed: dict[tuple[torch.device, torch.dtype], nn.Module] = {}
        self._units = _units_of(module, self._reduction)

    @property
    def unit(self) -> str:
        """What the module's mean is over."""
        return self._units or "element"

    @property
    def ignore_index(self) -> int | None:
        """The label that is not counted."""
        return getattr(self._mean, "ignore_index", None) if self._units == "label" else None

    @property
    def weight(self) -> Tensor | None:
        """Class weights, which the mean is divided by."""
        return getattr(self._mean, "weight", None) if self._units == "label" else None

    @property
    def fixed_units(self) -> bool:
        """Whether every sample has as many, and of the same weight."""
        return self._units != "label"

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of what the module gives for each sample, [n]."""
        predicted, fitting = self._arguments(outputs, targets)
        key = predicted.device, predicted.dtype
        if key not in self._placed:
            self._placed[key] = copy.deepcopy(self._parts).to(*key)
        losses = self._placed[key](predicted, fitting)
        if not isinstance(losses, Tensor) or losses.shape[:1] != targets.shape[:1]:
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"{self._name} with reduction='none' returned {shape} for {len(targets)} samples: it must return the "
                f"loss of each sample, first dimension first. {_OWN_LOSS}"
            )
        return losses if losses.dim() == 1 else losses.flatten(1).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """What the module's mean counts of each sample: int64 [n], or the sum of class weights, float64 [n]."""
        if self._units == "label":
            return label_units(targets, ignore_index=self.ignore_index, weight=self.weight)
        if self._units is None:
            raise ValueError(f"{self._name}: what its mean counts is found out by `examine`, with a few samples.")
        each = targets[:1].numel() if self._units == "element" else 1
        return torch.full((len(targets),), each, dtype=torch.int64, device=targets.device)

    def counted_per_sample(self, targets: Tensor) -> Tensor:
        """The same without class weights."""
        if self._units == "label":
            return label_units(targets, ignore_index=self.ignore_index)
        return self.units_per_sample(targets)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Labels with the largest output, or elements on the right side of 0 (`BCEWithLogitsLoss`) or 1/2 "
        "(`BCELoss`).
        """
        predicted, fitting = self._arguments(outputs, targets)
        if isinstance(self._mean, _OF_LABELS):
            return correct_labels(predicted, fitting, ignore_index=self.ignore_index)
        if not isinstance(self._mean, (nn.BCEWithLogitsLoss, nn.BCELoss)):
            return None
        border = 0.5 if isinstance(self._mean, nn.BCELoss) else 0.0
        hits = (predicted > border) == (fitting > 0.5)
        return hits.reshape(len(hits), -1).sum(dim=1)

    def mean_of(self, outputs: Any, targets: Tensor) -> Any:
        """What the module itself returns for a batch."""
        predicted, fitting = self._arguments(outputs, targets)
        return copy.deepcopy(self._mean).to(predicted.device, predicted.dtype)(predicted, fitting)

    def label_rule(self, outputs: Any) -> LabelRule | None:
        """Class numbers below the number of outputs, or probabilities."""
        if isinstance(self._mean, (nn.BCEWithLogitsLoss, nn.BCELoss)):
            return LabelRule(1, is_share=True)
        if not isinstance(self._mean, (*_OF_LABELS, nn.MultiMarginLoss)):
            return None
        return LabelRule(prediction(outputs).shape[1] - 1, self.ignore_index)

    def without_smoothing(self) -> ModuleLoss:
        """The same loss for measurements: its `label_smoothing` is 0, if it has some."""
        if not getattr(self._mean, "label_smoothing", 0.0):
            return self
        plain = copy.copy(self)
        plain._mean, plain._parts, plain._placed = copy.deepcopy(self._mean), copy.deepcopy(self._parts), {}
        plain._mean.label_smoothing = plain._parts.label_smoothing = 0.0  # type: ignore[assignment]
        return plain

    @torch.no_grad()
    def examine(self, outputs: Any, targets: Tensor) -> None:
        """Hold the module's own mean of some samples, two or more if it can be, against what is divided here.

        Raises:
            ValueError: if they differ, a sample's part depends on the others, or a call changes a buffer.
        """
        cases = [targets, *self._with_a_masked_label(targets)]
        known = _units_of(self._mean, self._reduction)
        # What fitted once is tried first: a few samples may leave open what more of them tell.
        for units in [known] if known else sorted(_candidates(self._mean, targets), key=lambda one: one != self._units):
            self._units = units
            found = [self._means(outputs, one) for one in cases]
            if all(abs(own - ours) <= _CLOSE * size for own, ours, size in found):
                break
        else:
            own, ours, _ = found[0]
            raise ValueError(
                f"{self._name}: its mean of {len(targets)} samples is {own:.6g}, and the mean of what it gives for "
                f"each of them with reduction='none' is {ours:.6g}: it divides by something else, which is not known "
                f"of a whole global batch. {_OWN_LOSS}"
            )
        alone = self.loss_per_sample(prediction(outputs)[:1], targets[:1])
        together = self.loss_per_sample(outputs, targets)[:1]
        if not torch.allclose(alone, together, rtol=_CLOSE, atol=1e-6):
            raise ValueError(
                f"{self._name}: the loss of a sample depends on the others of its micro-batch ({float(alone):.6g} "
                f"alone, {float(together):.6g} among {len(targets)}). {_OWN_LOSS} With `coupled = True` it is taken "
                "over the whole global batch."
            )
        for key, placed in self._placed.items():
            fresh = copy.deepcopy(self._parts).to(*key).state_dict()
            moved = [name for name, one in placed.state_dict().items() if not torch.equal(one, fresh[name])]
            self._require_unmoved(moved)

    def _require_unmoved(self, moved: list[str]) -> None:
        if moved:
            raise ValueError(
                f"{self._name}: a call changes its {moved[0]}, which each rank would do by itself. Keep what moves in "
                "the model."
            )

    @property
    def _name(self) -> str:
        return type(self._mean).__name__

    def _means(self, outputs: Any, targets: Tensor) -> tuple[float, float, float]:
        """The module's mean, that of the parts, and the mean of the parts' sizes."""
        own = self.mean_of(outputs, targets)
        parts = self.loss_per_sample(outputs, targets).double()
        units = float(self.units_per_sample(targets).sum())
        if not units:
            return 0.0, 0.0, 0.0  # torch's mean of nothing is no number
        if not isinstance(own, Tensor) or own.numel() != 1:
            raise ValueError(f"{self._name} with reduction={self._reduction!r} returned no single number. {_OWN_LOSS}")
        return float(own), float(parts.sum()) / units, float(parts.abs().sum()) / units

    def _with_a_masked_label(self, targets: Tensor) -> list[Tensor]:
        """The targets without the first label, if the module has a label that is not counted."""
        masked = getattr(self._mean, "ignore_index", None)
        if masked is None or targets.is_floating_point() or targets.numel() < 2:
            return []
        changed = targets.clone()
        changed.view(-1)[0] = masked
        return [changed]

    def _arguments(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self._mean, _OF_LABELS):
            predicted = float32_or_wider(logits_of_classes(self._name, outputs))
            return predicted, labels_for(self._name, predicted, targets)
        predicted = float32_or_wider(prediction(outputs))
        if not isinstance(self._mean, _OF_ELEMENTS):
            return predicted, targets.to(predicted.dtype) if targets.is_floating_point() else targets.long()
        if without_unit_column(predicted.shape) != without_unit_column(targets.shape):
            raise ValueError(
                f"{self._name} got outputs {list(predicted.shape)} and targets {list(targets.shape)}: both need the "
                "same shape (or [n] and [n, 1]). Change the model's outputs or the data set's targets."
            )
        return predicted, targets.reshape(predicted.shape).to(predicted.dtype)


def _units_of(module: nn.Module, reduction: str) -> Units | None:
    """What the mean of a module of torch, or one made from it, is over; None of others."""
    if isinstance(module, _OF_LABELS):
        return "label"
    if reduction == "batchmean" or isinstance(module, _OF_SAMPLES):
        return "sample"
    return "element" if isinstance(module, _OF_ELEMENTS) else None


def _candidates(module: nn.Module, targets: Tensor) -> list[Units]:
    whole: list[Units] = ["element", "sample"] if targets.dim() > 1 else ["sample"]
    return [*whole, "label"] if hasattr(module, "ignore_index") or hasattr(module, "weight") else whole

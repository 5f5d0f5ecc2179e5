"""Losses of torch and modules like them, called with reduction="none" and normalised like their own mean."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from largebatch.losses.in_pieces import LOGITS_AT_ONCE, cross_entropy_in_pieces
from largebatch.losses.label_rule import LabelRule
from largebatch.losses.labels import correct_labels, label_units, labels_for, logits_of_classes
from largebatch.losses.module_units import OF_ELEMENTS, OF_LABELS, candidates, has_classes, units_of
from largebatch.losses.protocol import float32_or_wider, prediction
from largebatch.losses.regression import without_unit_column

_CLOSE = 1e-4  # relative to the sum of absolute losses: users' modules may compute in float32
_OWN_LOSS = (
    "Write a class with loss_per_sample, units_per_sample and correct_per_sample (ten lines): see "
    "`largebatch.losses.Loss`."
)


class ModuleLoss:
    """A `torch.nn` loss, or a user's module with a `reduction`, as a `Loss`.

    The module is copied and its `reduction` set to "none", which gives the losses of each sample. Training minimises
    the module's own mean, over the whole global batch:

    - reduction "mean": over the numbers that it returns per sample (elements, as `MSELoss` and `BCEWithLogitsLoss` do,
      or one per sample); for `CrossEntropyLoss` and `NLLLoss`, over the weights of the labels that count.
    - "batchmean": over samples.

    The divisor is known for modules of torch. For others `examine` determines it from the module's mean of some
    samples.

    Buffers (class weights) follow the outputs to their device and type. [n] and [n, 1] are equivalent; nothing is
    broadcast. Integer targets are class numbers, or numbers if the module compares numbers.

    Args:
        module: a loss with reduction "mean" (torch's default) or "batchmean".

    Raises:
        ValueError: for another reduction, a module with trainable parameters, or shapes that do not fit.

    >>> loss = ModuleLoss(nn.MSELoss())
    >>> targets = torch.zeros(1, 2)
    >>> loss.loss_per_sample(torch.tensor([[3.0, 4.0]]), targets), loss.units_per_sample(targets)
    (tensor([25.]), tensor([2]))
    """

    widens_outputs: ClassVar[bool] = True

    def __init__(self, module: nn.Module) -> None:
        name = type(module).__name__
        self._reduction = str(getattr(module, "reduction", None))
        if self._reduction not in ("mean", "batchmean"):
            raise ValueError(
                f"{name} has reduction={self._reduction!r}: training minimises a mean over the global batch, and the "
                "module must define that mean. Use reduction=mean, torch's default."
            )
        if trained := [key for key, one in module.named_parameters() if one.requires_grad]:
            raise ValueError(
                f"{name} has trainable parameters ({', '.join(trained[:3])}), which the optimizer of a run does not "
                "have. Make it part of the model and return the loss of every sample from its forward (loss=output)."
            )
        self._mean = module
        self._parts = copy.deepcopy(module)
        self._parts.reduction = "none"  # type: ignore[assignment]
        self._placed: dict[tuple[torch.device, torch.dtype], nn.Module] = {}
        self.units = units_of(module, self._reduction)  # None: unknown until `examine`

    @property
    def unit(self) -> str:
        """The unit of the module's mean."""
        return self.units or "element"

    @property
    def ignore_index(self) -> int | None:
        """The label that does not count."""
        return getattr(self._mean, "ignore_index", None) if self.units == "label" else None

    @property
    def weight(self) -> Tensor | None:
        """Class weights; the mean divides by their sum over the labels."""
        return getattr(self._mean, "weight", None) if self.units == "label" else None

    @property
    def fixed_units(self) -> bool:
        """Whether every sample has the same number of units, with the same weight."""
        return self.units != "label"

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the module's losses of each sample, [n]."""
        losses = self._losses(outputs, targets)
        if not isinstance(losses, Tensor) or losses.shape[:1] != targets.shape[:1]:
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"{self._name} with reduction='none' returned {shape} for {len(targets)} samples: it must return the "
                f"loss of each sample, first dimension first. {_OWN_LOSS}"
            )
        return losses if losses.dim() == 1 else losses.flatten(1).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Each sample's part of the divisor of the module's mean: int64 [n], or sums of class weights, float64 [n]."""
        if self.units == "label":
            return label_units(targets, ignore_index=self.ignore_index, weight=self.weight)
        if self.units is None:
            raise ValueError(f"{self._name}: the divisor of its mean is unknown. Call `examine` with some samples.")
        each = targets[:1].numel() if self.units == "element" else 1
        return torch.full((len(targets),), each, dtype=torch.int64, device=targets.device)

    def counted_per_sample(self, targets: Tensor) -> Tensor:
        """The same without class weights."""
        if self.units == "label":
            return label_units(targets, ignore_index=self.ignore_index)
        return self.units_per_sample(targets)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Number of labels with the largest output, or of elements on the right side of the threshold."""
        if has_classes(self._mean, prediction(outputs), targets, self.units):
            return correct_labels(*self._arguments(outputs, targets), ignore_index=self.ignore_index)
        pair = self.decisions(outputs, targets)
        return None if pair is None else (pair[0] == pair[1]).reshape(len(targets), -1).sum(dim=1)

    def decisions(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Whether outputs are above 0 (`BCEWithLogitsLoss`) or 1/2 (`BCELoss`), and targets above 1/2; or None."""
        if not isinstance(self._mean, (nn.BCEWithLogitsLoss, nn.BCELoss)):
            return None
        predicted, fitting = self._arguments(outputs, targets)
        return predicted > (0.5 if isinstance(self._mean, nn.BCELoss) else 0.0), fitting > 0.5

    def logits_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What metrics of classes compare. Raises ValueError for a module without class numbers."""
        if not has_classes(self._mean, prediction(outputs), targets, self.units):
            raise ValueError(f"{self._name} has no class numbers. Choose another metric.")
        return self._arguments(outputs, targets)

    def mean_of(self, outputs: Any, targets: Tensor) -> Any:
        """The module's own mean over a batch."""
        predicted, fitting = self._arguments(outputs, targets)
        return copy.deepcopy(self._mean).to(predicted.device, predicted.dtype)(predicted, fitting)

    def label_rule(self, outputs: Any) -> LabelRule | None:
        """Class numbers below the number of outputs, or probabilities."""
        if isinstance(self._mean, (nn.BCEWithLogitsLoss, nn.BCELoss)):
            return LabelRule(1, is_share=True)
        if not isinstance(self._mean, (*OF_LABELS, nn.MultiMarginLoss)):
            return None
        return LabelRule(prediction(outputs).shape[1] - 1, self.ignore_index)

    def without_smoothing(self) -> ModuleLoss:
        """The same loss for measurements, with its `label_smoothing` set to 0."""
        if not getattr(self._mean, "label_smoothing", 0.0):
            return self
        plain = copy.copy(self)
        plain._mean, plain._parts, plain._placed = copy.deepcopy(self._mean), copy.deepcopy(self._parts), {}
        plain._mean.label_smoothing = plain._parts.label_smoothing = 0.0  # type: ignore[assignment]
        return plain

    @torch.no_grad()
    def examine(self, outputs: Any, targets: Tensor) -> None:
        """Compare the module's own mean of some samples, preferably two or more, with the mean computed here.

        Raises:
            ValueError: if they differ, a sample's loss depends on other samples, or a call changes a buffer.
        """
        cases = [targets, *self._with_a_masked_label(targets)]
        known = units_of(self._mean, self._reduction)
        # Try the divisor found earlier first: a few samples may not tell two candidates apart.
        for units in [known] if known else sorted(candidates(self._mean, targets), key=lambda one: one != self.units):
            self.units = units
            found = [self._means(outputs, one) for one in cases]
            if all(abs(own - ours) <= _CLOSE * size for own, ours, size in found):
                break
        else:
            own, ours, _ = found[0]
            raise ValueError(
                f"{self._name}: its mean of {len(targets)} samples is {own:.6g}, but the mean of its losses per sample "
                f"with reduction='none' is {ours:.6g}: its divisor cannot be determined for a global batch. {_OWN_LOSS}"
            )
        alone = self.loss_per_sample(prediction(outputs)[:1], targets[:1])
        together = self.loss_per_sample(outputs, targets)[:1]
        if not torch.allclose(alone, together, rtol=_CLOSE, atol=1e-6):
            raise ValueError(
                f"{self._name}: the loss of a sample depends on the others of its micro-batch ({float(alone):.6g} "
                f"alone, {float(together):.6g} among {len(targets)}). {_OWN_LOSS} With `coupled = True` it is computed "
                "over the whole global batch."
            )
        for key, placed in self._placed.items():
            fresh = copy.deepcopy(self._parts).to(*key).state_dict()
            moved = [name for name, one in placed.state_dict().items() if not torch.equal(one, fresh[name])]
            self._require_unmoved(moved)

    def _require_unmoved(self, moved: list[str]) -> None:
        if moved:
            raise ValueError(
                f"{self._name}: a call changes its {moved[0]}, and each rank would change its own. Keep such state in "
                "the model."
            )

    @property
    def _name(self) -> str:
        return str(getattr(self._mean, "shown_name", type(self._mean).__name__))

    def _means(self, outputs: Any, targets: Tensor) -> tuple[float, float, float]:
        """The module's own mean, the mean computed here, and the mean of absolute losses."""
        own = self.mean_of(outputs, targets)
        parts = self.loss_per_sample(outputs, targets).double()
        units = float(self.units_per_sample(targets).sum())
        if not units:
            return 0.0, 0.0, 0.0  # torch's mean of no labels is NaN
        if not isinstance(own, Tensor) or own.numel() != 1:
            raise ValueError(f"{self._name} with reduction={self._reduction!r} did not return a scalar. {_OWN_LOSS}")
        return float(own), float(parts.sum()) / units, float(parts.abs().sum()) / units

    def _with_a_masked_label(self, targets: Tensor) -> list[Tensor]:
        """The targets with the first label masked, if the module has an `ignore_index`; else none."""
        masked = getattr(self._mean, "ignore_index", None)
        if masked is None or targets.is_floating_point() or targets.numel() < 2:
            return []
        changed = targets.clone()
        changed.view(-1)[0] = masked
        return [changed]

    def _losses(self, outputs: Any, targets: Tensor) -> Any:
        if type(self._mean) is not nn.CrossEntropyLoss:  # a subclass may compute something else
            predicted, fitting = self._arguments(outputs, targets)
            return self._placed_like(predicted)(predicted, fitting)
        logits = logits_of_classes(self._name, outputs)
        module: Any = self._placed_like(logits)
        return cross_entropy_in_pieces(
            logits,
            labels_for(self._name, logits, targets),
            at_once=LOGITS_AT_ONCE,
            weight=module.weight,
            ignore_index=module.ignore_index,
            label_smoothing=module.label_smoothing,
        )

    def _placed_like(self, predicted: Tensor) -> nn.Module:
        key = predicted.device, torch.promote_types(predicted.dtype, torch.float32)
        if key not in self._placed:
            self._placed[key] = copy.deepcopy(self._parts).to(*key)
        return self._placed[key]

    def _arguments(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self._mean, OF_LABELS):
            predicted = float32_or_wider(logits_of_classes(self._name, outputs))
            return predicted, labels_for(self._name, predicted, targets)
        predicted = float32_or_wider(prediction(outputs))
        if not isinstance(self._mean, OF_ELEMENTS):
            return predicted, targets.to(predicted.dtype) if targets.is_floating_point() else targets.long()
        if without_unit_column(predicted.shape) != without_unit_column(targets.shape):
            raise ValueError(
                f"{self._name} got outputs {list(predicted.shape)} and targets {list(targets.shape)}: both need the "
                "same shape (or [n] and [n, 1]). Change the model's outputs or the data set's targets."
            )
        return predicted, targets.reshape(predicted.shape).to(predicted.dtype)

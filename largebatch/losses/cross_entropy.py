"""Cross-entropy over classes, and over the tokens of a language model, with the mean of torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch.losses.in_pieces import LOGITS_AT_ONCE, cross_entropy_in_pieces
from largebatch.losses.label_rule import LabelRule, class_weights
from largebatch.losses.labels import (
    class_numbers,
    correct_labels,
    label_units,
    labels_for,
    logits_of_classes,
    misfit,
)
from largebatch.losses.protocol import float32_or_wider, prediction

_ROUNDED = 1e-2  # tolerance of a sum of probabilities that were stored with few digits
_NO_LABEL = -(2**31)  # an ignore_index that no label has, since torch always has one


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of classification, with the mean of `torch.nn.CrossEntropyLoss` over the whole global batch.

    Outputs are [n, C], or [n, C, ...] for labels of every pixel. Targets are class numbers [n] (or [n, ...]) of any
    integer type, or probabilities of the classes, floating point, of the outputs' shape.

    - Smoothing s: the loss of logits z is (1 - s) nll(target) + s/C sum_c nll(c), where nll = -log_softmax(z).
      Source: Szegedy et al. 2016, section 7. Smoothing belongs to training: measure with `CrossEntropy()`.
    - Class weights w: nll(c) is multiplied by w_c, and the mean divides by the sum of the weights of the labels (by the
      number of samples, for probabilities).
    - `ignore_index`: a label equal to it has no loss, no unit and no gradient.
    - Accuracy is the fraction of counted labels, without weights. The label of probabilities is the largest one.

    Attributes:
        label_smoothing: s, in [0, 1).
        ignore_index: the label that does not count; None: every label counts, and units are fixed.
        weight: one number per class; None: all 1.
        logits_at_once: logits that are copied to float32 at a time, see `cross_entropy_in_pieces`; None: all.

    Raises:
        ValueError: if `label_smoothing` or a weight is outside its range or shapes do not fit.

    >>> CrossEntropy().loss_per_sample(torch.zeros(3, 10), torch.tensor([3, 7, -100]))  # log 10
    tensor([2.3026, 2.3026, 0.0000])
    """

    unit: ClassVar[str] = "label"
    widens_outputs: ClassVar[bool] = True
    label_smoothing: float = 0.0
    ignore_index: int | None = -100
    weight: Sequence[float] | None = None
    logits_at_once: int | None = LOGITS_AT_ONCE

    def __post_init__(self) -> None:
        _require_smoothing(self.label_smoothing)
        _require_pieces(self.logits_at_once)
        object.__setattr__(self, "weight", class_weights(self.weight))

    @property
    def fixed_units(self) -> bool:
        """Whether every label counts, with the same weight."""
        return self.ignore_index is None and self.weight is None

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, summed over its labels, [n]."""
        logits, labels = self.logits_and_labels(outputs, targets)
        losses = cross_entropy_in_pieces(
            logits,
            labels,
            at_once=self.logits_at_once,
            weight=_weight_like(self.weight, logits),
            ignore_index=_NO_LABEL if self.ignore_index is None or labels.is_floating_point() else self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return losses if losses.dim() == 1 else losses.flatten(1).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of labels of each sample, int64 [n], or the sum of their weights, float64 [n]."""
        return label_units(targets, ignore_index=self.ignore_index, weight=self.weight)

    def counted_per_sample(self, targets: Tensor) -> Tensor:
        """Number of labels of each sample, int64 [n]."""
        return label_units(targets, ignore_index=self.ignore_index)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Number of labels of each sample with the largest logit, int64 [n]."""
        logits, labels = self.logits_and_labels(outputs, targets)
        return correct_labels(logits, labels, ignore_index=self.ignore_index)

    def mean_of(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean of torch."""
        logits, labels = self.logits_and_labels(outputs, targets)
        logits = float32_or_wider(logits)
        is_counted = self.ignore_index is None or labels.is_floating_point()
        return F.cross_entropy(
            logits,
            labels,
            weight=_weight_like(self.weight, logits),
            ignore_index=_NO_LABEL if is_counted else int(self.ignore_index or 0),
            label_smoothing=self.label_smoothing,
        )

    def examine(self, outputs: Any, targets: Tensor) -> None:
        """Raise ValueError if class probabilities are not probabilities; torch itself does not check."""
        if not targets.is_floating_point() or targets.dim() < 2:
            return
        sums = targets.sum(dim=1)
        if bool((sums - 1).abs().max() > _ROUNDED) or float(targets.min()) < 0:
            raise ValueError(
                f"CrossEntropy got targets of the outputs' shape {list(targets.shape)} that are not class "
                f"probabilities: the sums per sample range from {float(sums.min()):.4g} to {float(sums.max()):.4g} "
                f"and must be 1, the smallest value is {float(targets.min()):.4g}. If a sample may have several "
                "classes use loss=module loss._target_=torch.nn.BCEWithLogitsLoss; for torch's cross-entropy of any "
                "numbers, loss._target_=torch.nn.CrossEntropyLoss."
            )

    def label_rule(self, outputs: Any) -> LabelRule:
        """Class numbers below the number of outputs, and `ignore_index`."""
        return LabelRule(prediction(outputs).shape[1] - 1, self.ignore_index)

    def logits_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What it compares; metrics ask for it."""
        logits = logits_of_classes("CrossEntropy", outputs)
        _require_weights(self.weight, logits.shape[1] if logits.dim() > 1 else 0)
        return logits, labels_for("CrossEntropy", logits, targets)


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every token: outputs [n, T, V], targets of an integer type [n, T].

    Output position t predicts target position t, or t + 1 with `shift`. Targets equal to `ignore_index` are masked: no
    loss, no unit, no gradient. A sample may be masked completely: its loss is 0 and it has 0 units.

    Attributes:
        ignore_index: the target that means "masked".
        label_smoothing: as in `CrossEntropy`, per valid token.
        weight: as in `CrossEntropy`, per token of the vocabulary.
        logits_at_once: as in `CrossEntropy`.
        shift: whether targets are the inputs themselves, as for the causal models of transformers, so that each
            position predicts the next one. None: `train` decides from model and data (`with_shift`); here it means
            False.

    Raises:
        ValueError: if `label_smoothing` or a weight is outside its range or shapes do not fit.

    >>> NextToken().loss_per_sample(torch.zeros(1, 3, 10), torch.tensor([[3, 7, -100]]))  # 2 log 10
    tensor([4.6052])
    >>> NextToken(shift=True).units_per_sample(torch.tensor([[3, 7, -100]]))
    tensor([1])
    """

    unit: ClassVar[str] = "token"
    class_dim: ClassVar[int] = 2
    widens_outputs: ClassVar[bool] = True
    fixed_units: ClassVar[bool] = False
    ignore_index: int = -100
    label_smoothing: float = 0.0
    weight: Sequence[float] | None = None
    shift: bool | None = None
    logits_at_once: int | None = LOGITS_AT_ONCE

    def __post_init__(self) -> None:
        _require_smoothing(self.label_smoothing)
        _require_pieces(self.logits_at_once)
        if self.ignore_index is None:
            raise ValueError(
                "ignore_index=None: NextToken needs a target that means 'masked'. Use -100, torch's default."
            )
        object.__setattr__(self, "weight", class_weights(self.weight))

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy summed over the valid tokens of each sample, [n]."""
        logits, labels = self.logits_and_labels(outputs, targets)
        loss_per_token = cross_entropy_in_pieces(
            logits.flatten(0, 1),
            labels.flatten(),
            at_once=self.logits_at_once,
            weight=_weight_like(self.weight, logits),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return loss_per_token.view(targets.shape).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of valid tokens of each sample, int64 [n], or the sum of their weights, float64 [n]."""
        return label_units(self._aligned(targets), ignore_index=self.ignore_index, weight=self.weight)

    def counted_per_sample(self, targets: Tensor) -> Tensor:
        """Number of valid tokens of each sample, int64 [n]."""
        return label_units(self._aligned(targets), ignore_index=self.ignore_index)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Number of valid tokens of each sample with the largest logit, int64 [n]."""
        logits, labels = self.logits_and_labels(outputs, targets)
        return correct_labels(logits, labels, ignore_index=self.ignore_index, dim=-1)

    def mean_of(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean of torch."""
        logits, labels = float32_or_wider(prediction(outputs)), targets.long()
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        weight, masked = _weight_like(self.weight, logits), self.ignore_index
        rows = logits.flatten(0, 1), labels.flatten()
        return F.cross_entropy(*rows, weight=weight, ignore_index=masked, label_smoothing=self.label_smoothing)

    def label_rule(self, outputs: Any) -> LabelRule:
        """Tokens of the vocabulary, and `ignore_index`."""
        return LabelRule(prediction(outputs).shape[-1] - 1, self.ignore_index)

    def logits_and_labels(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What it compares; metrics ask for it."""
        logits = prediction(outputs)
        if targets.dim() != 2 or logits.dim() != 3 or logits.shape[:-1] != targets.shape:
            raise ValueError(misfit("NextToken", logits, targets, "outputs [n, T, V] and targets [n, T]"))
        _require_weights(self.weight, logits.shape[-1])
        return logits, self._aligned(class_numbers("NextToken", targets))

    def _aligned(self, targets: Tensor) -> Tensor:
        """The target of every position; with `shift` the last position has none."""
        # Shift targets, not logits: a slice of the logits would copy the largest tensor.
        return F.pad(targets[:, 1:], (0, 1), value=self.ignore_index) if self.shift else targets


@functools.lru_cache(maxsize=16)
def _weight_tensor(weight: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(weight, dtype=dtype, device=device)  # cached: each copy to a device would synchronise


def _weight_like(weight: Any, logits: Tensor) -> Tensor | None:
    """The class weights, in the type in which losses are computed."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return None if weight is None else _weight_tensor(weight, wide, logits.device)


def _require_weights(weight: Sequence[float] | None, num_classes: int) -> None:
    if weight is not None and num_classes and len(weight) != num_classes:
        raise ValueError(f"loss.weight has {len(weight)} numbers, the model {num_classes} outputs: give one for each.")


def _require_pieces(logits_at_once: int | None) -> None:
    if logits_at_once is not None and logits_at_once < 1:
        raise ValueError(f"logits_at_once={logits_at_once}: use 1 or more, or None to copy all logits at once.")


def _require_smoothing(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing={label_smoothing!r}: must be in [0, 1). Use 0 for none.")

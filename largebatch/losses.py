"""Losses as sums over a sample's units, and the number of those units.

A unit is what the mean loss is a mean over: a sample, or a token. Nothing here divides: training multiplies the sums
by one weight, and evaluation divides the sum over all samples by the units of all samples. That is what makes unequal
micro-batches, unequal ranks and masked tokens exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(Protocol):
    """What training and evaluation ask of a loss.

    `outputs` is what the model returned: a tensor, or an object with a tensor `.logits` (Hugging Face). The first
    dimension of outputs and targets counts samples, n.
    """

    @property
    def unit(self) -> str:
        """What is counted: "sample" or "token"."""

    @property
    def fixed_units(self) -> bool:
        """True if every sample has the same number of units, known from the shape of the targets alone."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the loss over the units of each sample, [n], float32 or wider, differentiable."""

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of units of each sample, int64 [n]."""

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Number of correctly predicted units of each sample, int64 [n]; None if there is no such thing."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of classification: outputs [n, C], targets int64 [n].

    With smoothing s, the loss of logits z is (1 - s) nll(target) + s/C sum_c nll(c), where nll = -log_softmax(z).
    Source: Szegedy et al. 2016, section 7. Smoothing belongs to training: measure with `CrossEntropy()`.

    Attributes:
        label_smoothing: s, in [0, 1).

    Raises:
        ValueError: if `label_smoothing` is outside [0, 1) or shapes do not fit.

    >>> CrossEntropy().loss_per_sample(torch.zeros(2, 10), torch.tensor([3, 7]))  # log 10
    tensor([2.3026, 2.3026])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require_smoothing(self.label_smoothing)

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, [n]."""
        logits = self._logits(outputs, targets)
        return F.cross_entropy(
            _float32_or_wider(logits), targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """1 where the largest logit is the target's, else 0, int64 [n]."""
        return (self._logits(outputs, targets).argmax(dim=-1) == targets).long()

    def _logits(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = _prediction(outputs)
        _require_classes("CrossEntropy", logits, targets, expected="outputs [n, C] and targets [n]", num_dims=1)
        return logits


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of language modelling: outputs [n, T, V], targets int64 [n, T], already shifted by the data set.

    Position t of the outputs is compared with position t of the targets. Targets equal to `ignore_index` are masked: no
    loss, no unit, no gradient. A sample may be masked altogether: its loss is 0 and it has 0 units.

    Attributes:
        ignore_index: the target that means "masked".
        label_smoothing: as in `CrossEntropy`, per valid token.

    Raises:
        ValueError: if `label_smoothing` is outside [0, 1) or shapes do not fit.

    >>> NextToken().loss_per_sample(torch.zeros(1, 3, 10), torch.tensor([[3, 7, -100]]))  # 2 log 10
    tensor([4.6052])
    """

    unit: ClassVar[str] = "token"
    fixed_units: ClassVar[bool] = False
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require_smoothing(self.label_smoothing)

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy summed over the valid tokens of each sample, [n]."""
        logits = _float32_or_wider(self._logits(outputs, targets))
        loss_per_token = F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return loss_per_token.view(targets.shape).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Number of valid tokens of each sample, int64 [n]."""
        return (targets != self.ignore_index).sum(dim=1)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Number of valid tokens of each sample with the largest logit, int64 [n]."""
        hits = self._logits(outputs, targets).argmax(dim=-1) == targets
        return (hits & (targets != self.ignore_index)).sum(dim=1)

    def _logits(self, outputs: Any, targets: Tensor) -> Tensor:
        logits = _prediction(outputs)
        _require_classes("NextToken", logits, targets, expected="outputs [n, T, V] and targets [n, T]", num_dims=2)
        return logits


@dataclass(frozen=True)
class SquaredError:
    """Half the squared distance of regression, 0.5 |f - y|^2: outputs and targets of one shape, [n, ...].

    Half, so that the gradient in f is f - y. [n] and [n, 1] are the same thing and may be mixed; nothing is broadcast.

    Raises:
        ValueError: if outputs and targets differ in shape.

    >>> SquaredError().loss_per_sample(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([12.5000])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Half the squared distance of each sample, [n]."""
        prediction = _prediction(outputs)
        if _without_unit_column(prediction.shape) != _without_unit_column(targets.shape):
            raise ValueError(
                f"SquaredError got outputs {list(prediction.shape)} and targets {list(targets.shape)}: both need the "
                f"same shape (or [n] and [n, 1]). Change the model's num_outputs or the data set's targets."
            )
        difference = _float32_or_wider(prediction) - _float32_or_wider(targets).reshape(prediction.shape)
        return 0.5 * difference.square().unsqueeze(1).flatten(1).sum(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> None:
        """None: a number is not right or wrong."""
        return


@dataclass(frozen=True)
class OutputIsLoss:
    """For models that return the loss of every sample themselves, such as `largebatch.models.Quadratic`: outputs [n].

    The targets say how many samples there are, and nothing else. Raises ValueError if the outputs are not as many.

    >>> OutputIsLoss().loss_per_sample(torch.tensor([3.0, -1.0]), torch.zeros(2))
    tensor([ 3., -1.])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """The outputs, [n]."""
        losses = _prediction(outputs)
        if losses.shape != targets.shape[:1]:
            raise ValueError(
                f"OutputIsLoss got outputs {list(losses.shape)} for {len(targets)} samples: the model must return one "
                f"loss per sample, [n]. Choose a model that does, such as model=quadratic, or another loss."
            )
        return _float32_or_wider(losses)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> None:
        """None: nothing is predicted."""
        return


def units_are_fixed(loss: Loss, dataset: Any) -> bool:
    """Whether the units of a global batch follow from its size, so that no rank has to count or ask.

    So it is for a loss with fixed units, and for one that masks targets on a data set in memory (samples of one shape)
    whose `label_range` does not hold the masking value: a stream of tokens without padding.
    """
    if loss.fixed_units:
        return True
    masked, labels = getattr(loss, "ignore_index", None), getattr(dataset, "label_range", None)
    if masked is None or labels is None or not hasattr(dataset, "fetch"):
        return False
    return not labels[0] <= masked <= labels[1]


def _prediction(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ValueError(
        f"The model returned a {type(outputs).__name__} without a tensor in .logits: a loss needs a tensor or an "
        f"object with .logits. Return the logits from the model's forward, or choose an AutoModel class with a head."
    )


def _without_unit_column(shape: torch.Size) -> torch.Size:
    return shape[:1] if shape[1:] == (1,) else shape


def _float32_or_wider(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _require_smoothing(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing={label_smoothing!r}: the smoothed share lies in [0, 1). Use 0 for none.")


def _require_classes(loss: str, logits: Tensor, targets: Tensor, *, expected: str, num_dims: int) -> None:
    if targets.dim() != num_dims or logits.dim() != num_dims + 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"{loss} got outputs {list(logits.shape)} and targets {list(targets.shape)}: it needs {expected}. "
            f"Change the model, the data set, or the loss."
        )
    if targets.dtype != torch.int64:
        raise ValueError(
            f"{loss} got targets of {targets.dtype}: targets are class numbers in torch.int64. Convert them with "
            f".long() in the data set."
        )

"""What the mean of a loss module divides by."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Units = Literal["label", "element", "sample"]

OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
OF_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss,
    nn.SoftMarginLoss, nn.HingeEmbeddingLoss, nn.KLDivLoss,
)  # fmt: skip
_OF_SAMPLES = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)


def units_of(module: nn.Module, reduction: str) -> Units | None:
    """The units of the mean of a torch module or a subclass; None for other modules."""
    if isinstance(module, OF_LABELS):
        return "label"
    if reduction == "batchmean" or isinstance(module, _OF_SAMPLES):
        return "sample"
    return "element" if isinstance(module, OF_ELEMENTS) else None


def candidates(module: nn.Module, targets: Tensor) -> list[Units]:
    """What the mean of a module might divide by, of a batch with these targets."""
    whole: list[Units] = ["element", "sample"] if targets.dim() > 1 else ["sample"]
    return [*whole, "label"] if hasattr(module, "ignore_index") or hasattr(module, "weight") else whole


def has_classes(module: nn.Module, outputs: Tensor, targets: Tensor, units: Units | None) -> bool:
    """Whether targets are class numbers of the dimension after the first of the outputs, so that there is accuracy.

    Torch's modules say it by their kind. Of others, and of functions, by the shapes: integers [n, ...] beside outputs
    [n, C, ...] with C > 1, as many as the mean counts.
    """
    if isinstance(module, (*OF_LABELS, nn.MultiMarginLoss)):
        return True
    if isinstance(module, (*OF_ELEMENTS, *_OF_SAMPLES)) or targets.is_floating_point() or outputs.dim() < 2:
        return False
    is_one_each = targets.dim() == 1 or units == "element"
    return is_one_each and outputs.shape[1] > 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape

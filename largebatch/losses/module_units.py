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

"""A loss function of the user's own as a module, which `ModuleLoss` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class FunctionLoss(nn.Module):
    """f(outputs, targets), which returns the loss of each sample; or f(outputs, targets, reduction=...), as torch's.

    Args:
        function: of outputs and targets.
        arguments: further ones.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.reduction = function, arguments, "mean"
        self._reduces = "reduction" in inspect.signature(function).parameters
        self.shown_name = getattr(function, "__name__", type(function).__name__)

    def forward(self, outputs: Any, targets: Tensor) -> Any:
        """The losses of samples, or their mean."""
        if self._reduces:
            return self.function(outputs, targets, reduction=self.reduction, **self.arguments)
        losses = self.function(outputs, targets, **self.arguments)
        return losses.mean() if self.reduction == "mean" and isinstance(losses, Tensor) else losses

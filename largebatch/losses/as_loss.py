"""A loss as torch's users have it: a module, or a function of outputs and targets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from largebatch.losses.module_loss import ModuleLoss
from largebatch.losses.protocol import Loss

# The modules know what their mean divides by.
_MODULES: dict[Callable[..., Any], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.kl_div: nn.KLDivLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
}


def as_loss(loss: Any) -> Loss:
    """A `Loss` for measurements: of a torch loss with reduction "mean", a function like it, or a `Loss` itself.

    Args:
        loss: `nn.CrossEntropyLoss()`, `torch.nn.functional.cross_entropy`, a `functools.partial` of such a function, a
            function (outputs, targets, reduction=...), or an object with the methods of `Loss`.

    Raises:
        ValueError: if the losses of single samples cannot be had.

    >>> import torch
    >>> as_loss(F.mse_loss).loss_per_sample(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([25.])
    """
    if hasattr(loss, "loss_per_sample"):
        own: Loss = loss
        return own
    if isinstance(loss, nn.Module):
        return ModuleLoss(loss)
    function: Any = loss
    settings: dict[str, Any] = {}
    while isinstance(function, functools.partial) and not function.args:
        function, settings = function.func, {**function.keywords, **settings}
    if function in _MODULES:
        return ModuleLoss(_MODULES[function](**settings))
    if callable(function) and "reduction" in _parameters(function):
        return ModuleLoss(_OfFunction(function, settings))
    raise ValueError(
        f"{getattr(function, '__name__', type(function).__name__)} returns one number per batch, and the losses of "
        "single samples are needed. Give a loss of torch.nn or torch.nn.functional, a function with the argument "
        "reduction=, as theirs ('mean' and 'none'), or an object with the methods of `largebatch.losses.Loss`."
    )


class _OfFunction(nn.Module):
    def __init__(self, function: Callable[..., Tensor], settings: dict[str, Any]) -> None:
        super().__init__()
        self.reduction = settings.pop("reduction", "mean")
        self._function, self._settings = function, settings

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._function(outputs, targets, reduction=self.reduction, **self._settings)


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in ones have none
        return set()

"""All gradients of a module as a few flat tensors, which ranks send in one piece."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Flat = list[Tensor]
"""One tensor per dtype."""


class FlatGradients:
    """Reads and writes the `.grad` of the parameters that are trained.

    Args:
        module: the unwrapped model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in module.parameters():
            if parameter.requires_grad:
                self._by_dtype.setdefault(parameter.dtype, []).append(parameter)

    def read(self) -> Flat:
        """Copies of all gradients; one that is missing counts as 0."""
        return [
            torch.cat(
                [
                    (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().reshape(-1)
                    for parameter in parameters
                ]
            )
            for parameters in self._by_dtype.values()
        ]

    def write(self, flat: Flat) -> None:
        """Make views of `flat` the gradients."""
        for parameters, values in zip(self._by_dtype.values(), flat, strict=True):
            parts = values.split([parameter.numel() for parameter in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def empty(self, device: torch.device) -> Flat:
        """Room for what `read` returns."""
        return [
            torch.empty(sum(parameter.numel() for parameter in parameters), dtype=dtype, device=device)
            for dtype, parameters in self._by_dtype.items()
        ]

    def clear(self) -> None:
        """Leave no gradient."""
        for parameters in self._by_dtype.values():
            for parameter in parameters:
                parameter.grad = None

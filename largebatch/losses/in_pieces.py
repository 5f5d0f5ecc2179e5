"""Cross-entropy of logits that are too large to be copied: piece by piece, with a gradient that is computed again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from largebatch.losses.protocol import float32_or_wider

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def cross_entropy_in_pieces(logits: Tensor, labels: Tensor, *, at_once: int | None, **options: Any) -> Tensor:
    """Losses of the rows of `logits`, as `F.cross_entropy(..., reduction="none")` has them, in float32 or wider.

    Beside the logits and their gradient, both in the type of the logits, memory holds a few copies of one piece. The
    forward pass keeps nothing of a piece; the backward pass computes it again. A row has the loss and the gradient that
    it has among all rows.

    Args:
        logits: [m, C, ...], of any floating type.
        labels: class numbers [m, ...], or probabilities [m, C, ...].
        at_once: logits of a piece, which holds one row at least; None: all. Fewer logits are taken without pieces.
        options: `weight`, `ignore_index` and `label_smoothing` of `F.cross_entropy`.
    """
    if at_once is None or logits.numel() <= at_once:
        return _losses(logits, labels, options)
    rows = max(1, at_once // logits.shape[1:].numel())
    losses: Tensor = _InPieces.apply(logits, labels, rows, options)
    return losses


def _losses(logits: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    return F.cross_entropy(float32_or_wider(logits), labels, reduction="none", **options)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rows: int, options: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.rows, ctx.options = rows, options
        pieces = zip(logits.split(rows), labels.split(rows), strict=True)
        return torch.cat([_losses(*piece, options) for piece in pieces])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels = ctx.saved_tensors
        is_differentiated = torch.is_grad_enabled()  # again, as for curvature
        result = torch.empty_like(logits)
        for first in range(0, len(logits), ctx.rows):
            place = slice(first, first + ctx.rows)
            with torch.enable_grad():
                piece = logits[place] if is_differentiated else logits[place].detach().requires_grad_()
                losses = _losses(piece, labels[place], ctx.options)
            (result[place],) = torch.autograd.grad(losses, piece, grad[place], create_graph=is_differentiated)
        return result, None, None, None

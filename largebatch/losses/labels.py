"""Labels of logits: their formats, their number, and the number of correct predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from largebatch.losses.protocol import float32_or_wider, prediction

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def logits_of_classes(loss: str, outputs: Any) -> Tensor:
    """The logits [n, C, ...] of a model's outputs.

    Raises:
        ValueError: for a token model of transformers, whose classes are in the last dimension.
    """
    logits = prediction(outputs)
    if logits.dim() == 3 and not isinstance(outputs, Tensor):
        raise ValueError(
            f"{loss} takes classes in the second dimension, as torch does, but {type(outputs).__name__} has logits "
            f"{list(logits.shape)} with classes in the last. Choose loss=next_token, or loss=per_token for one label "
            "per token."
        )
    return logits


def labels_for(loss: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Class numbers int64 [n, ...], or probabilities [n, C, ...] of the type of the logits.

    Raises:
        ValueError: if they do not fit the logits [n, C, ...].
    """
    if targets.is_floating_point() and targets.shape == logits.shape and logits.dim() > 1:
        return targets.to(float32_or_wider(logits).dtype)
    if logits.dim() < 2 or targets.shape != logits.shape[:1] + logits.shape[2:]:
        expected = "outputs [n, C] and targets [n] (or [n, C, ...] and [n, ...]; class probabilities have [n, C, ...])"
        if logits.dim() == 3 and targets.shape == logits.shape[:2]:
            expected += ". For classes in the last dimension (tokens) choose loss=next_token or loss=per_token"
        raise ValueError(misfit(loss, logits, targets, expected))
    return class_numbers(loss, targets)


def label_units(
    targets: Tensor, *, ignore_index: int | None = None, weight: Sequence[float] | Tensor | None = None
) -> Tensor:
    """Divisor of torch's mean over the labels [n, ...]: counts, int64 [n], or sums of class weights, float64 [n].

    Class probabilities [n, C, ...] count as one label each, whatever the weights, as in torch.
    """
    if targets.is_floating_point():
        labels = targets[0, 0].numel() if len(targets) else 0
        return torch.full((len(targets),), labels, dtype=torch.int64, device=targets.device)
    rows = targets.reshape(len(targets), -1)
    valid = torch.ones_like(rows, dtype=torch.bool) if ignore_index is None else rows != ignore_index
    if weight is None:
        return valid.sum(dim=1)
    weights = torch.as_tensor(weight, dtype=torch.float64, device=targets.device)
    # A label out of range is reported where the loss is computed, with its sample.
    of_labels = weights[rows.long().clamp(0, len(weights) - 1)]
    return (of_labels * valid).sum(dim=1)


def correct_labels(logits: Tensor, labels: Tensor, *, ignore_index: int | None, dim: int = 1) -> Tensor:
    """Number of labels of each sample that have the largest logit along `dim`, int64 [n]."""
    best = logits.argmax(dim=dim)
    if labels.is_floating_point():
        hits = best == labels.argmax(dim=dim)
    else:
        hits = best == labels
        if ignore_index is not None:
            hits &= labels != ignore_index
    return hits.reshape(len(hits), -1).sum(dim=1)


def labelled_rows(loss: Any, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What metrics of classes compare: logits [n, labels, C], class numbers int64 [n, labels], which count, bool.

    A loss with `logits_and_labels(outputs, targets)` says what it compares, with its classes in dimension `class_dim`
    and `ignore_index` masked. Others are read as torch reads them: outputs [n, C, ...], targets [n, ...], -100 masked.

    Raises:
        ValueError: if the shapes do not fit.
    """
    ignore_index, dim = getattr(loss, "ignore_index", -100), getattr(loss, "class_dim", 1)
    if (ask := getattr(loss, "logits_and_labels", None)) is not None:
        logits, labels = ask(outputs, targets)
    else:
        logits = logits_of_classes("A metric of classes", outputs)
        labels = labels_for("A metric of classes", logits, targets)
    if labels.is_floating_point():
        labels, ignore_index = labels.argmax(dim=dim), None
    logits = logits.movedim(dim, -1)
    rows, labels = logits.reshape(len(logits), -1, logits.shape[-1]), labels.reshape(len(labels), -1)
    counts = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    return rows, labels, counts


def class_numbers(loss: str, targets: Tensor) -> Tensor:
    """Targets of any integer type as int64. Raises ValueError for others."""
    if targets.dtype not in _INTEGERS:
        raise ValueError(
            f"{loss} got targets of {targets.dtype}: targets are class numbers, integers. Convert them with .long() in "
            "the data set."
        )
    return targets.long()


def misfit(loss: str, logits: Tensor, targets: Tensor, expected: str) -> str:
    """Error text for shapes that do not fit."""
    return (
        f"{loss} got outputs {list(logits.shape)} and targets {list(targets.shape)}: it needs {expected}. "
        f"Change the model, the data set, or the loss."
    )

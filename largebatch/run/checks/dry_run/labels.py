"""Checks that the loss can score the model's outputs against the labels of a set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from largebatch.data import MicroBatchData
from largebatch.losses import (
    LabelRule,
    Loss,
    OutputIsLoss,
    label_rule,
    require_labels,
    require_no_dropped_loss,
    scored,
)
from largebatch.models.label_shift import with_shift
from largebatch.models.modes import evaluating
from largebatch.run.checks.dry_run.as_before import as_before
from largebatch.run.checks.dry_run.passes import outputs_of
from largebatch.run.checks.dry_run.samples import TriedBatch, as_given, rows_of
from largebatch.training.raised import error_text


def scored_batch(batch: TriedBatch, outputs: Any, targets: Tensor, loss: Loss) -> Tensor:
    """Loss of each sample of a batch that is tried.

    Raises:
        ValueError: if a label cannot be scored; names its sample.
    """
    return scored(loss, outputs, targets, batch.ids)


def check_labels(dataset: Any, model: nn.Module, outputs: Any, targets: Tensor, loss: Loss) -> None:
    """Check that the loss scores the smallest and the largest label of the whole set, which may come at any step.

    Also checks that no loss term of the model is left out, and that the loss is computed sample by sample.

    Raises:
        ValueError: if one of these fails.
    """
    require_no_dropped_loss(model, outputs, are_losses=isinstance(loss, OutputIsLoss))
    if (examine := getattr(loss, "examine", None)) is not None:
        examine(outputs, targets)
    for label in getattr(dataset, "label_range", None) or ():
        labels = torch.full_like(targets, label)
        try:
            scored(loss, outputs, labels, range(len(labels)))
        except Exception as error:
            smallest, largest = dataset.label_range
            rule = label_rule(loss, outputs)
            reason = None if rule is None else rule.problem(labels)
            raise ValueError(
                f"the labels lie from {smallest} to {largest}, and the model's outputs cannot be scored against "
                f"{label} ({error_text(error) if reason is None else reason}). Give the model as many outputs as "
                "classes (data.num_classes, data.vocab_size), or correct the labels."
            ) from error
    known = getattr(dataset, "targets", None)
    if isinstance(known, Tensor):
        require_labels(label_rule(loss, outputs), known, range(len(known)))


def settled_loss(model: nn.Module, loss: Loss, probed: MicroBatchData, precision: str) -> tuple[Loss, LabelRule | None]:
    """The loss as the run takes it, see `with_shift`, and the labels that it can score.

    Args:
        model: of the run.
        loss: of the config.
        probed: samples spread over the training set; one is passed through the model, the labels of all are looked at.
        precision: of the run.

    Raises:
        ValueError: if labels cannot be scored, or their shift is ambiguous.
    """
    rule = rule_of(model, loss, probed, precision)
    require_labels(rule, probed.targets, probed.ids.tolist())
    with as_before(model), evaluating(model), torch.no_grad():
        return with_shift(
            loss, model, *(as_given(one, model, precision) for one in (probed.inputs, probed.targets))
        ), rule


def rule_of(model: nn.Module, loss: Loss, probed: MicroBatchData, precision: str) -> LabelRule | None:
    """The labels that the loss can score against what the model returns for a sample."""
    # The same sample twice: one alone has no batch statistics.
    first = as_given(rows_of(probed.inputs, torch.zeros(2, dtype=torch.int64)), model, precision)
    with as_before(model), evaluating(model), torch.no_grad():
        return label_rule(loss, outputs_of(model, first, precision))


def logits_in_pieces(loss: Loss, rule: LabelRule | None, targets: Tensor, micro_batch_size: int) -> list[str]:
    """A note if the loss copies the logits of a micro-batch to float32 piece by piece.

    Args:
        loss: of the run.
        rule: of the classes that it scores.
        targets: of some samples.
        micro_batch_size: samples of the largest micro-batch.
    """
    at_once = getattr(loss, "logits_at_once", None)
    if at_once is None or rule is None:
        return []
    labels = targets[0, 0].numel() if targets.is_floating_point() else targets[0].numel()
    logits = micro_batch_size * labels * (rule.highest + 1)
    if logits <= at_once:
        return []
    return [
        f"loss.logits_at_once={at_once}: the {logits:,} logits of a micro-batch are copied to float32 piece by piece, "
        f"{at_once * 4 / 2**20:,.4g} MiB instead of {logits * 4 / 2**20:,.4g} MiB; losses and gradients stay the same."
    ]

"""Tries an evaluation step of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.data import evaluation_batches
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.losses.metrics import Metric, for_loss
from largebatch.models.modes import evaluating
from largebatch.run.checks.dry_run.as_before import as_before
from largebatch.run.checks.dry_run.labels import check_labels, scored_batch
from largebatch.run.checks.dry_run.passes import explained, outputs_of
from largebatch.run.checks.dry_run.samples import TriedBatch, as_given
from largebatch.run.config.schema import TrainConfig
from largebatch.training.observers.metric_sums import checked_sums
from largebatch.training.raised import is_ours

TRIED_TO_SKIP = 8


def try_evaluation(
    config: TrainConfig,
    dataset: Any,
    model: nn.Module,
    loss: Loss,
    metrics: Mapping[str, Metric],
    *,
    count: int,
    world_size: int,
) -> None:
    """Forward pass and loss of two samples of an evaluated set; of one, if the run has a micro-batch of one sample.

    Args:
        config: of the run.
        dataset: without random changes.
        model: of the run.
        loss: of the run.
        metrics: of the run, by name.
        count: samples of the set that are evaluated, by all ranks together.
        world_size: ranks.

    Raises:
        ValueError: if shapes or labels do not fit.
    """
    skips, precision = config.data.skips, config.precision.compute
    # A coupled loss needs two samples, and with on_bad_sample=skip a single sample may be a bad one.
    has_single = not is_coupled(loss) and _has_single(count, world_size, config.observers.evaluation.micro)
    count = min(TRIED_TO_SKIP if skips else 1 if has_single else 2, len(dataset))
    ids = SampleOrder(len(dataset)).ids(0, count)
    loaded = next(evaluation_batches(dataset, ids, micro_batch_size=count, skips=skips))
    size = len(loaded.targets)
    batch = TriedBatch(loaded.inputs, loaded.targets, size, size, loaded)
    with as_before(model), evaluating(model), torch.no_grad():
        inputs, targets = as_given(batch.inputs, model, precision), as_given(batch.targets, model, precision)
        with explained(model, batch, during="the forward pass of an evaluation"):
            outputs = outputs_of(model, inputs, precision)
        with explained(model, batch, during="the loss"):
            scored_batch(batch, outputs, targets, loss)
        for name, metric in metrics.items():
            with explained(model, batch, during=f"metrics.{name}"):
                _try_metric(name, for_loss(metric, loss), outputs, targets)
        check_labels(dataset, model, outputs, targets, loss)


def _try_metric(name: str, metric: Metric, outputs: Any, targets: Tensor) -> None:
    try:
        value = metric.value(checked_sums(metric, outputs, targets).double().sum(dim=0).cpu())
    except ValueError as error:
        if is_ours(error):
            raise ValueError(f"metrics.{name}: {error}") from error
        raise
    if not isinstance(value, (int, float)):
        raise ValueError(f"metrics.{name}: value returned a {type(value).__name__}, not one number: {value}.")


def _has_single(count: int, world_size: int, micro: int) -> bool:
    """Whether a micro-batch of one sample is left over when the ranks share `count` samples evenly."""
    shares = {count // world_size, -(-count // world_size)}
    return any(share % micro == 1 % micro for share in shares if share)

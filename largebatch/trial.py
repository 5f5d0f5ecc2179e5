"""Tries a run on some samples of each set, on the CPU, so that what does not fit together is found before it starts.

A loss that compares samples is tried on two of them, others on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.batch import BatchPlan
from largebatch.coupled_losses import is_coupled
from largebatch.data import Augmentation, MicroBatchData, MicroBatchLoader, evaluation_batches
from largebatch.fingerprint import tensors_sha256
from largebatch.gradients import forward
from largebatch.losses import Loss
from largebatch.order import SampleOrder
from largebatch.schema import TrainConfig

_PROBED_SAMPLES = 16
_TRIED_TO_SKIP = 8


def try_training(config: TrainConfig, dataset: Any, augment: Augmentation | None, model: nn.Module, loss: Loss) -> None:
    """Forward and backward of one training sample; the model is as new afterwards.

    Raises:
        ValueError: if shapes or labels do not fit, or a parameter gets no gradient.
    """
    # One worker shows whether items load. A set in memory refuses workers: it should name their real number.
    num_workers, skips = config.data.num_workers, config.data.skips
    loader = MicroBatchLoader(
        dataset,
        SampleOrder(len(dataset), config.seed),
        BatchPlan.solve(global_batch_size=_num_tried(dataset, loss, skips=skips), world_size=1),
        0,
        augment=augment,
        num_workers=num_workers if hasattr(dataset, "fetch") else min(num_workers, 1),
        seed=config.seed,
        timeout_s=config.data.timeout_s,
        skips=skips,
    )
    batch = next(loader.micro_batches(0, 1))
    model.eval()  # batch norm needs no second sample, and its statistics stay as they are
    with _explained(batch):
        _loss_of(batch, dataset, model, loss).backward()
    unused = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    model.zero_grad()
    model.train()
    if unused:
        raise ValueError(
            f"{len(unused)} parameters get no gradient, e.g. {', '.join(unused[:3])}: the all-reduce would wait for "
            "them. Remove them, or freeze them with requires_grad=False."
        )


def try_evaluation(config: TrainConfig, dataset: Any, model: nn.Module, loss: Loss) -> None:
    """Forward of a sample of a set that is only evaluated.

    Raises:
        ValueError: if shapes or labels do not fit.
    """
    skips = config.data.skips
    first = SampleOrder(len(dataset)).ids(0, _num_tried(dataset, loss, skips=skips))
    batch = next(evaluation_batches(dataset, first, micro_batch_size=len(first), skips=skips))
    model.eval()
    with torch.no_grad(), _explained(batch):
        _loss_of(batch, dataset, model, loss)
    model.train()


def sampled_content(config: TrainConfig, dataset: Any) -> str:
    """SHA-256, shortened, of samples spread over a set, each drawn under its own random numbers as in training.

    They stand for all, so that it costs nothing; the last one is among them. Other samples may change unseen.

    Raises:
        DataError: if one of them cannot be loaded; names it.
    """
    ids = np.unique(np.linspace(0, len(dataset) - 1, _PROBED_SAMPLES).astype(np.int64))
    skips = config.data.skips
    (batch,) = evaluation_batches(dataset, ids, len(ids), seed=config.seed, skips=skips)
    inputs = batch.inputs if isinstance(batch.inputs, dict) else {"input": batch.inputs}
    named = [*((f"inputs.{name}", part) for name, part in inputs.items()), ("targets", batch.targets)]
    return tensors_sha256(named)[:16]


def _num_tried(dataset: Any, loss: Loss, *, skips: bool) -> int:
    """One sample alone has nothing to be compared with, and may be one of those to skip."""
    return min(_TRIED_TO_SKIP if skips else 2 if is_coupled(loss) else 1, len(dataset))


def _loss_of(batch: MicroBatchData, dataset: Any, model: nn.Module, loss: Loss) -> Tensor:
    outputs = forward(model, batch.inputs)
    value = loss.loss_per_sample(outputs, batch.targets).sum()
    for label in getattr(dataset, "label_range", None) or ():
        _check_label(label, outputs, batch, dataset, loss)
    return value


@contextmanager
def _explained(batch: MicroBatchData) -> Iterator[None]:
    """Say what one sample looks like where model, loss and data do not fit together."""
    try:
        yield
    except _MISFITS as error:
        inputs = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in (inputs | {"targets": batch.targets}).items())
        tried = "one sample" if len(batch.targets) == 1 else "two samples"
        raise ValueError(
            f"{tried} ({shapes}) failed with {_told(error)}. Do the model's inputs and outputs and the labels fit "
            "the data?"
        ) from error


def _check_label(label: int, outputs: Any, batch: MicroBatchData, dataset: Any, loss: Loss) -> None:
    """Score the outputs against the smallest or largest label of the whole set: it may come at any step."""
    try:
        loss.loss_per_sample(outputs, torch.full_like(batch.targets, label))
    except _MISFITS as error:
        smallest, largest = dataset.label_range
        raise ValueError(
            f"the labels lie from {smallest} to {largest}, and the model's outputs cannot be scored against {label} "
            f"({_told(error)}). Give the model as many outputs as there are classes (data.num_classes, "
            "data.vocab_size), or correct the labels."
        ) from error


_MISFITS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"

"""The generalization gap of a model: both sides evaluated alike, sample by sample, on all ranks of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.diagnostics.gap.gap import EvalSums, GeneralizationGap, generalization_gap, sums_of_batch
from largebatch.diagnostics.sharpness.own_samples import Samples, as_samples, holds_batches, known_loss, own_job
from largebatch.distributed.own_job import Job
from largebatch.gradient.accumulation import forward
from largebatch.gradient.snapshots import preserving_buffers_and_rng
from largebatch.losses import Loss, counted_per_sample, is_coupled
from largebatch.models.modes import evaluating


@dataclass(frozen=True)
class MeasuredGap:
    """A model on training and on validation samples.

    Attributes:
        train, validation: mean loss and accuracy of each, with standard errors.
        gap: their difference; positive means worse on validation samples.
    """

    train: EvalSums
    validation: EvalSums
    gap: GeneralizationGap


def measure_gap(
    module: nn.Module,
    loss: Any,
    train: Any,
    validation: Any,
    *,
    num_samples: int | None = None,
    micro_batch_size: int = 128,
    seed: int = 0,
) -> MeasuredGap:
    """Evaluate training and validation samples in eval mode, every sample once; every rank gets the result.

    All ranks of the default process group call it, if there is one. Data sets are shared out to them; a `DataLoader` or
    a list of batches is what a rank has of its own (a sampler that pads with copies counts these twice). Buffers,
    modes and random generators are restored bit for bit. Read `generalization_gap` for what makes a gap
    meaningful: give the training set without augmentation.

    Args:
        module: the model; in `DistributedDataParallel`, too.
        loss: `nn.CrossEntropyLoss()`, `torch.nn.functional.cross_entropy`, or others: see `losses.as_loss`.
        train: map-style data set, `DataLoader`, list of batches, or one batch (inputs, targets).
        validation: likewise.
        num_samples: random samples of each data set; None: of the training set as many as there are for validation.
        micro_batch_size: samples of a data set per forward pass.
        seed: of the choice of samples.

    Raises:
        ValueError: if a loss per sample cannot be had, or a side is empty.

    >>> inputs = torch.arange(8.0).reshape(8, 1)
    >>> model = nn.Linear(1, 1)
    >>> with torch.no_grad():
    ...     _ = model.weight.fill_(1.0), model.bias.fill_(0.0)
    >>> found = measure_gap(model, nn.MSELoss(), (inputs, inputs + 1), (inputs, inputs + 2))
    >>> found.train.mean_loss, found.validation.mean_loss, found.gap.loss
    (1.0, 4.0, 3.0)
    """
    module, job = own_job(module, None)
    other = as_samples(validation, job, count=num_samples, seed=seed, micro_batch_size=micro_batch_size)
    count = other.num_samples if num_samples is None and not holds_batches(train) else num_samples
    own = as_samples(train, job, count=count, seed=seed, micro_batch_size=micro_batch_size)
    measured = known_loss(loss, module, own, job)
    with preserving_buffers_and_rng(module), evaluating(module), torch.no_grad():
        sums, sums_of_other = (_sums(module, measured, samples, job) for samples in (own, other))
    return MeasuredGap(sums, sums_of_other, generalization_gap(sums, sums_of_other))


def sums_of_outputs(loss: Loss, outputs: Any, targets: Tensor) -> Tensor:
    """What `EvalSums` adds up of the outputs for one batch, [11], on their device; see `sums_of_batch`."""
    losses, units = loss.loss_per_sample(outputs, targets), loss.units_per_sample(targets)
    correct, counted = loss.correct_per_sample(outputs, targets), counted_per_sample(loss, targets)
    if is_coupled(loss):  # the samples of a batch are one draw
        losses, units = losses.double().sum()[None], units.sum()[None]
        correct, counted = None if correct is None else correct.sum()[None], counted.sum()[None]
    return sums_of_batch(losses, units, correct, counted).to(targets.device)


def _sums(module: nn.Module, loss: Loss, samples: Samples, job: Job) -> EvalSums:
    total = EvalSums().to_tensor().to(job.device)
    for inputs, targets in samples.stream(job):
        total += sums_of_outputs(loss, forward(module, inputs), targets)
    return EvalSums.from_tensor(torch.tensor(job.start_sum(total).result(), dtype=torch.float64))

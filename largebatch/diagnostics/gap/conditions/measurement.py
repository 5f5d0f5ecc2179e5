"""Measure a fixed training subset and validation samples under each condition between training and evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.diagnostics.gap.conditions.passes import (
    CORRECT,
    COUNTED,
    LOSS,
    TRAINED,
    UNITS,
    GapData,
    GapSettings,
    Passes,
)
from largebatch.diagnostics.gap.conditions.statistics import (
    averaging,
    norms_with_statistics,
    over_ranks,
    put,
    statistics,
)
from largebatch.diagnostics.gap.gap_parts import PerSample
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.snapshots import measuring
from largebatch.models.modes import Modes, train_mode


@dataclass(frozen=True)
class Conditions:
    """Sums of every sample under each condition.

    Attributes:
        printed: training samples under the conditions of the logged training loss.
        changes: (name, sums after one more change, or None if it does not apply), ending with those of evaluation.
        validation: validation samples, evaluated.
    """

    printed: PerSample
    changes: tuple[tuple[str, PerSample | None], ...]
    validation: PerSample


def measure_conditions(
    module: nn.Module, losses: tuple[Any, Any], data: GapData, runtime: Runtime, settings: GapSettings
) -> Conditions:
    """Evaluate all conditions; every rank calls it and gets all results.

    Random draws are keyed by (seed, draw, micro-batch or sample), and micro-batches are set by `ghost`, so the result
    is the same on any number of ranks. Weights, buffers, modes and random generators are restored bit for bit.

    Fresh batch norm statistics are the means of the micro-batch statistics over all draws in training mode: the limit
    of running statistics at fixed weights ("precise batch norm", Wu and Johnson 2021, "Rethinking Batch in BatchNorm",
    section 3).

    Args:
        module: the unwrapped model.
        losses: (loss of training, loss of measurement); they may differ in label smoothing.
        data: samples to measure.
        runtime: the job.
        settings: settings of the measurement.
    """
    passes = Passes(module, losses, data, runtime, settings)
    train_mode(module)
    modes, norms = Modes(module), norms_with_statistics(module)
    draws = range(settings.draws)
    with measuring(module), torch.no_grad():
        running = [statistics(norm) for norm in norms]
        modes.restore()
        with averaging(norms):
            augmented = [passes.train(draw, is_augmented=passes.is_augmented) for draw in draws]
            fresh = [over_ranks(norm, runtime, kept) for norm, kept in zip(norms, running, strict=True)]
        plain = [passes.train(draw, is_augmented=False) for draw in draws] if passes.is_augmented else augmented
        module.eval()
        put(norms, fresh)
        evaluated = passes.train(0, is_augmented=False)
        put(norms, running)
        stale = passes.evaluate(data.plain, data.ids) if norms else None
        clean = None if data.clean is None else passes.evaluate(data.clean, data.ids)
        validation = passes.evaluate(data.validation, data.validation_ids)
    # The same pass in the other mode: a difference of a single bit shows that the mode has an effect.
    has_modes = not torch.equal(plain[0].nan_to_num(), evaluated.nan_to_num())
    without_augmentation = _mean(plain) if has_modes else evaluated
    with_all = _mean(augmented) if passes.is_augmented else without_augmentation
    tables = {
        "augmentation": without_augmentation if passes.is_augmented else None,
        "train mode": evaluated if has_modes else None,
        "stale statistics": stale,
        **({} if clean is None else {"label noise": clean}),
    }
    printed, smoothing = _smoothing(with_all, losses)
    changes = [(name, None if table is None else _per_sample(table, LOSS)) for name, table in tables.items()]
    return Conditions(printed, (("label smoothing", smoothing), *changes), _per_sample(validation, LOSS))


def _smoothing(table: Tensor, losses: tuple[Any, Any]) -> tuple[PerSample, PerSample | None]:
    """Training samples with the training loss, and with the measurement loss if it differs."""
    trained, measured = _per_sample(table, TRAINED), _per_sample(table, LOSS)
    if losses[0] == losses[1]:
        return trained, None
    return dataclasses.replace(measured, loss=trained.loss), measured


def _mean(tables: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tables)).mean(dim=0)


def _per_sample(table: Tensor, loss: int) -> PerSample:
    values = table.cpu().numpy()
    correct = values[:, CORRECT]
    counted = values[:, COUNTED]
    return PerSample(values[:, loss], values[:, UNITS], None if np.isnan(correct).any() else correct, counted)

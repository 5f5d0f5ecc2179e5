"""What an observer of a run cannot be asked for, told before any process group."""

from __future__ import annotations

from typing import Any

from largebatch.coupled_losses import is_coupled
from largebatch.schema import TrainConfig


def sharpness_problems(config: TrainConfig, train_plain: Any, loss: Any) -> list[str]:
    """Errors of `observers.sharpness`, if it is asked for."""
    options = config.observers.sharpness
    if options.every is None:
        return []
    problems = []
    if options.samples > len(train_plain):
        problems.append(
            f"observers.sharpness.samples={options.samples}: the training set has {len(train_plain)}. Use at most that."
        )
    if options.samples % options.m:
        groups = options.samples // options.m
        problems.append(
            f"observers.sharpness.m={options.m}: {options.samples} samples do not divide into groups of {options.m}. "
            f"Use {f'samples={groups * options.m}' if groups else f'm at most {options.samples}'}, or another m."
        )
    if is_coupled(loss):
        problems.append(
            f"observers.sharpness.every={options.every}: {config.loss['_target_']} compares the samples of a batch, so "
            "that the loss of a subset depends on how it is cut. Leave the sharpness out."
        )
    if config.precision.compile:
        problems.append(
            f"observers.sharpness.every={options.every}: torch.compile has no second derivatives. Use "
            "precision.compile=false, or `largebatch measure sharpness` after the run."
        )
    return problems

"""Errors in the settings of observers, found before any process group."""

from __future__ import annotations

from typing import Any

from largebatch.run.config.schema import TrainConfig


def sharpness_problems(config: TrainConfig, train_plain: Any) -> list[str]:
    """Errors of `observers.sharpness`, if it is asked for."""
    options = config.observers.sharpness
    if options.every is None:
        return []
    problems = []
    if options.samples > len(train_plain):
        problems.append(
            f"observers.sharpness.samples={options.samples}: the training set has {len(train_plain)}. Use at most that."
        )
    if options.samples < options.m:
        problems.append(
            f"observers.sharpness.m={options.m}: {options.samples} samples make no group of {options.m}. Use m at most "
            f"{options.samples}."
        )
    return problems


def guard_problems(config: TrainConfig) -> list[str]:
    """Errors of `guard`: a checkpoint to go back to must come during the run."""
    if config.guard.policy != "rollback" or config.observers.checkpoint.every is not None:
        return []
    return [
        "guard.policy=rollback: returns to the newest checkpoint, and with observers.checkpoint.every=null there is "
        "none before the end. Set observers.checkpoint.every, e.g. 1ep, or use guard.policy=skip."
    ]

"""Errors in the settings of observers, found before any process group."""

from __future__ import annotations

from typing import Any

from largebatch.run.config.schema import TrainConfig


def observer_problems(config: TrainConfig, train_plain: Any) -> list[str]:
    """Errors of `observers.sharpness` and `guard`; `train_plain` is None if it could not be made."""
    return ([] if train_plain is None else _sharpness_problems(config, train_plain)) + _guard_problems(config)


def _sharpness_problems(config: TrainConfig, train_plain: Any) -> list[str]:
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


def _guard_problems(config: TrainConfig) -> list[str]:
    # A checkpoint to go back to must come during the run.
    if config.guard.policy != "rollback" or config.observers.checkpoint.every is not None:
        return []
    return [
        "guard.policy=rollback: returns to the newest checkpoint, and with observers.checkpoint.every=null there is "
        "none before the end. Set observers.checkpoint.every, e.g. 1ep, or use guard.policy=skip."
    ]

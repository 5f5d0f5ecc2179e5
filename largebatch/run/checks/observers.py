"""What an observer of a run cannot be asked for, told before any process group."""

from __future__ import annotations

from typing import Any

from largebatch.losses.coupled import is_coupled
from largebatch.run.config.combinations import exclusions
from largebatch.run.config.schema import TrainConfig


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
    if options.samples < options.m:
        problems.append(
            f"observers.sharpness.m={options.m}: {options.samples} samples make no group of {options.m}. Use m at most "
            f"{options.samples}."
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


def guard_problems(config: TrainConfig) -> list[str]:
    """Errors of `guard`: a checkpoint to go back to must come during the run."""
    if config.guard.policy != "rollback" or config.observers.checkpoint.every is not None:
        return []
    return [
        "guard.policy=rollback: goes back to the newest checkpoint, and with observers.checkpoint.every=null there is "
        "none before the end. Set observers.checkpoint.every, e.g. 1ep, or use guard.policy=skip."
    ]


def recomputation_problems(config: TrainConfig, loss: Any) -> list[str]:
    """Errors of `observers.recompute.every`, if it is asked for."""
    every = config.observers.recompute.every
    if every is None:
        return []
    others = {
        "batch.reduction=ordered": (
            config.batch.reduction == "ordered",
            "it adds up micro-batches of several ranks one by one, and no rank has a part of its own to compare",
        ),
        "batch_norm=exact": (
            config.batch_norm == "exact",
            "the ranks meet in every batch norm, none computes alone",
        ),
        "batch.on_out_of_memory=lower": (
            config.batch.on_out_of_memory == "lower",
            "a step may be taken again by all ranks, and the rehearsal of one of them would not be",
        ),
        f"loss._target_={config.loss['_target_']}": (
            is_coupled(loss),
            "it compares the samples of all ranks, so that what one got wrong is in the gradients of the others",
        ),
    }
    return exclusions(f"observers.recompute.every={every}", others)


def skip_problems(config: TrainConfig, loss: Any) -> list[str]:
    """Errors of `data.on_bad_sample=skip`: what takes the sizes of micro-batches from the plan would be wrong."""
    if not config.data.skips:
        return []
    key, observers = "data.on_bad_sample=skip", config.observers
    smaller = "it takes micro-batches to be as large as planned"
    others = {
        f"loss._target_={config.loss['_target_']}": (is_coupled(loss), "it compares all samples of a global batch"),
        "batch_norm=exact": (config.batch_norm == "exact", smaller),
        "observers.noise_scale": (observers.noise_scale.every is not None, smaller),
        "observers.sharpness": (observers.sharpness.every is not None, "it measures a fixed subset"),
    }
    return exclusions(key, others)

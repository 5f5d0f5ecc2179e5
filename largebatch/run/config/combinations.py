"""Which ways to compute a gradient, and to measure its noise, go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from largebatch.batch.ramp import BatchRamp
from largebatch.run.config.schema import TrainConfig

_FEWEST_TO_SPLIT = 4


def combination_problems(config: TrainConfig, *, world_size: int) -> list[str]:
    """Settings about the gradient of a global batch that exclude each other, or have no effect on so many ranks."""
    return (
        _exact_batch_norm_problems(config)
        + _compression_problems(config, world_size)
        + _shortage_problems(config)
        + _limit_problems(config)
    )


def exclusions(key: str, others: Mapping[str, tuple[bool, str]]) -> list[str]:
    """An error for each setting that `key` does not go with.

    Args:
        key: with its value.
        others: setting -> whether it is chosen, and why both cannot be.
    """
    return [
        f"{key}: does not go with {name}: {reason}. Choose one of them."
        for name, (is_set, reason) in others.items()
        if is_set
    ]


def _exact_batch_norm_problems(config: TrainConfig) -> list[str]:
    if config.batch_norm != "exact":
        return []
    others = {
        "batch.reduction=ordered": (
            config.batch.reduction == "ordered",
            "it adds the gradients of micro-batches one by one, and here they have none of their own",
        ),
        "precision.activation_checkpointing": (
            bool(config.precision.activation_checkpointing),
            "it computes micro-batches again one by one, without the statistics of the others",
        ),
        "precision.compile": (config.precision.compile, "the forward passes wait for each other in Python"),
    }
    return exclusions("batch_norm=exact", others)


def _compression_problems(config: TrainConfig, world_size: int) -> list[str]:
    compression = config.precision.gradient_compression
    if compression == "none":
        return []
    key = f"precision.gradient_compression={compression}"
    if world_size == 1:
        return [f"{key}: has no effect on one process, which sends no gradients. Leave it none, or use more processes."]
    others = {
        "batch.reduction=ordered": (config.batch.reduction == "ordered", "it is for audits, bit for bit"),
        "batch_norm=exact": (config.batch_norm == "exact", "its gradients are summed by other means than DDP"),
        "precision.compute=fp64": (config.precision.compute == "fp64", "a few digits would be left of sixteen"),
    }
    return exclusions(key, others)


def _limit_problems(config: TrainConfig) -> list[str]:
    micro, limit = config.batch.micro, config.batch.max_micro
    if micro is None or limit is None or micro <= limit:
        return []
    return [
        f"batch.micro={micro}: is more than batch.max_micro={limit}, the most samples of one forward pass. Pin fewer, "
        f"or give batch.max_micro={micro}."
    ]


def _shortage_problems(config: TrainConfig) -> list[str]:
    if config.batch.on_out_of_memory == "stop":
        return []
    compression = config.precision.gradient_compression
    compressed = f"precision.gradient_compression={compression}"
    others = {
        f"batch.micro={config.batch.micro}": (config.batch.micro is not None, "a pinned micro-batch cannot be lowered"),
        "batch.max_micro=1": (config.batch.max_micro == 1, "there is nothing lower"),
        "batch.reduction=ordered": (config.batch.reduction == "ordered", "it needs a pinned micro-batch"),
        "batch_norm=exact": (config.batch_norm == "exact", "all micro-batches of a rank are in memory at once"),
        compressed: (compression != "none", "DDP compresses, and sums nothing here"),
    }
    return exclusions("batch.on_out_of_memory=lower", others)


def noise_scale_problems(config: TrainConfig, ramp: BatchRamp | None) -> list[str]:
    """Why the noise scale cannot be measured; `ramp` is None where it could not be solved."""
    options = config.observers.noise_scale
    if options.every is None:
        if options.groups is None:
            return []
        return ["observers.noise_scale.groups: has no effect without measurements. Set observers.noise_scale.every=10."]
    errors = []
    single = [plan.global_batch_size for plan in ramp.plans if len(plan.micro_batch_sizes) == 1] if ramp else []
    if single and min(single) < _FEWEST_TO_SPLIT:
        errors.append(
            f"observers.noise_scale.every={options.every}: the noise shows in the difference between parts of a batch, "
            f"and one micro-batch is split into two; a step has {min(single)} samples, and it takes "
            f"{_FEWEST_TO_SPLIT}. Raise batch.total, or use more processes."
        )
    if config.batch_norm == "exact":
        errors.append(
            f"observers.noise_scale.every={options.every}: with batch_norm=exact a micro-batch has no gradient of its "
            "own. Use batch_norm=per_micro_batch, or leave the noise scale out."
        )
    return errors


def coupled_problems(config: TrainConfig, ramp: BatchRamp | None, train_plain: Any, validation: Any) -> list[str]:
    """What a loss that compares samples cannot be taken over; `ramp` is None where it could not be solved."""
    name, problems = config.loss["_target_"], []
    if ramp is not None and min(plan.global_batch_size for plan in ramp.plans) < 2:
        problems.append(f"batch.total=1: {name} compares the samples of a batch. Use at least 2.")
    if config.observers.evaluation.micro < 2:
        problems.append(
            f"observers.evaluation.micro=1: {name} compares the samples of an evaluation batch. Use at least 2."
        )
    if (every := config.observers.noise_scale.every) is not None:
        problems.append(
            f"observers.noise_scale.every={every}: {name} compares samples, so a micro-batch has no gradient of its "
            "own. Leave the noise scale out."
        )
    if config.batch.on_out_of_memory == "lower":
        problems.append(f"batch.on_out_of_memory=lower: {name} ties micro-batches together. Leave it stop.")
    if len(train_plain) < len(validation):
        problems.append(
            f"data.validation: has {len(validation)} samples and the training set {len(train_plain)}: {name} would be "
            "measured over evaluation batches of another size on each side, which are not comparable. Use a validation "
            "set that is not larger, or raise data.limit."
        )
    return problems

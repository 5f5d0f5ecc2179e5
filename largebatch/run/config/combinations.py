"""Which settings go together: the choices of a config, and what else excludes each other."""

from __future__ import annotations

from typing import Any

from largebatch.batch.ramp import BatchRamp
from largebatch.gradient import choices
from largebatch.gradient.choices import Ability, Choice
from largebatch.losses.coupled import is_coupled
from largebatch.run.config.schema import TrainConfig

_FEWEST_TO_SPLIT = 4


def choices_of(config: TrainConfig, loss: Any) -> list[Choice]:
    """All choices of a config that need something of others, or take something away from them; see `conflicts`.

    Args:
        config: of the run.
        loss: as made from it; None: it could not be made.
    """
    batch, precision, observers = config.batch, config.precision, config.observers
    compression, recompute = precision.gradient_compression, observers.recompute.every
    noise, sharpness = observers.noise_scale.every, observers.sharpness.every
    communication = observers.communication.every
    made: list[tuple[Choice, bool]] = [
        (_pinned(batch.micro), batch.micro is not None),
        (_ONE_SAMPLE, batch.max_micro == 1),
        (choices.exact_batch_norm(), config.batch_norm == "exact"),
        (choices.in_order(), batch.reduction == "ordered"),
        (choices.coupled_loss(str(config.loss["_target_"])), is_coupled(loss)),
        (choices.compression(compression), compression != "none"),
        (choices.halving(), batch.on_out_of_memory == "lower"),
        (choices.recomputation(f"observers.recompute.every={recompute}"), recompute is not None),
        (choices.noise_scale(f"observers.noise_scale.every={noise}"), noise is not None),
        (choices.communication(f"observers.communication.every={communication}"), communication is not None),
        (choices.sharpness(f"observers.sharpness.every={sharpness}"), sharpness is not None),
        (_CHECKPOINTING, bool(precision.activation_checkpointing)),
        (_COMPILED, precision.compile),
        (_DOUBLE, precision.compute == "fp64"),
        (_SKIPPING, config.data.skips),
    ]
    return [choice for choice, is_made in made if is_made]


def _pinned(micro: int | None) -> Choice:
    return Choice(f"batch.micro={micro}", lacks={Ability.SMALLER_PARTS: "a pinned micro-batch cannot be lowered"})


_ONE_SAMPLE = Choice("batch.max_micro=1", lacks={Ability.SMALLER_PARTS: "there is nothing lower"})
_CHECKPOINTING = Choice(
    "precision.activation_checkpointing",
    lacks={
        Ability.FORWARD_ONCE: "it computes micro-batches again one by one, without the statistics of the others",
    },
)
_COMPILED = Choice(
    "precision.compile=true",
    lacks={
        Ability.PYTHON_FORWARD: "forward passes would have to wait for each other in Python",
        Ability.SECOND_DERIVATIVES: "torch.compile has no second derivatives",
    },
)
_DOUBLE = Choice("precision.compute=fp64", lacks={Ability.FEW_DIGITS: "a few digits would be left of sixteen"})
_SKIPPING = Choice("data.on_bad_sample=skip", needs=frozenset({Ability.ANY_SIZES}))


def combination_problems(config: TrainConfig, *, world_size: int) -> list[str]:
    """Settings about a global batch that contradict each other, or have no effect on so many ranks."""
    return _compression_problems(config, world_size) + _limit_problems(config)


def _compression_problems(config: TrainConfig, world_size: int) -> list[str]:
    compression = config.precision.gradient_compression
    if compression == "none" or world_size > 1:
        return []
    return [
        f"precision.gradient_compression={compression}: has no effect on one process, which sends no gradients. Leave "
        "it none, or use more processes."
    ]


def _limit_problems(config: TrainConfig) -> list[str]:
    micro, limit = config.batch.micro, config.batch.max_micro
    if micro is None or limit is None or micro <= limit:
        return []
    return [
        f"batch.micro={micro}: is more than batch.max_micro={limit}, the most samples of one forward pass. Pin fewer, "
        f"or give batch.max_micro={micro}."
    ]


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
    if len(train_plain) < len(validation):
        problems.append(
            f"data.validation: has {len(validation)} samples and the training set {len(train_plain)}: {name} would be "
            "measured over evaluation batches of another size on each side, which are not comparable. Use a validation "
            "set that is not larger, or raise data.limit."
        )
    return problems

"""Which settings go together: the choices of a config, and what else excludes each other."""

from __future__ import annotations

from typing import Any

from largebatch.batch.ramp import BatchRamp
from largebatch.gradient import choices
from largebatch.gradient.choices import Ability, Choice, conflicts
from largebatch.gradient.options import GradientOptions
from largebatch.run.config.schema import TrainConfig

_FEWEST_TO_SPLIT = 4


def gradient_options(config: TrainConfig) -> GradientOptions:
    """In which way the config wants the gradient of a global batch; what is known of model and data comes later."""
    return GradientOptions(
        ordered=config.batch.reduction == "ordered",
        exact_batch_norm=config.batch_norm == "exact",
        compression=config.precision.gradient_compression,
        halves_micro_batches=config.batch.on_out_of_memory == "lower",
        recompute_every=config.observers.recompute.every,
    )


def choices_of(config: TrainConfig, loss: Any) -> list[Choice]:
    """All choices of a config that need something of others, or take something away from them; see `conflicts`.

    Args:
        config: of the run.
        loss: as made from it; None: it could not be made.
    """
    precision, observers, micro = config.precision, config.observers, config.batch.micro
    made = [
        *gradient_options(config).choices(loss, name=str(config.loss["_target_"])),
        micro is not None
        and Choice(f"batch.micro={micro}", "batch.micro=null", lacks={Ability.SMALLER_PARTS: _PINNED}),
        config.batch.max_micro == 1 and _ONE_SAMPLE,
        observers.noise_scale.every is not None and choices.noise_scale(observers.noise_scale.every),
        observers.communication.every is not None and choices.communication(observers.communication.every),
        observers.sharpness.every is not None and choices.sharpness(observers.sharpness.every),
        precision.activation_checkpointing and _CHECKPOINTING,
        precision.compile and _COMPILED,
        precision.compute == "fp64" and _DOUBLE,
        config.data.skips and _SKIPPING,
    ]
    return [choice for choice in made if choice]


_PINNED = "a pinned micro-batch cannot be lowered"
_ONE_SAMPLE = Choice(
    "batch.max_micro=1", "a larger batch.max_micro", lacks={Ability.SMALLER_PARTS: "there is nothing lower"}
)
_CHECKPOINTING = Choice(
    "precision.activation_checkpointing",
    "precision.activation_checkpointing=false",
    lacks={Ability.FORWARD_ONCE: "it computes micro-batches again one by one, without the statistics of the others"},
)
_COMPILED = Choice(
    "precision.compile=true",
    "precision.compile=false",
    lacks={
        Ability.PYTHON_FORWARD: "forward passes would have to wait for each other in Python",
        Ability.SECOND_DERIVATIVES: "torch.compile has no second derivatives. `largebatch measure sharpness` takes "
        "them after the run",
    },
)
_DOUBLE = Choice(
    "precision.compute=fp64", "precision=fp32", lacks={Ability.FEW_DIGITS: "a few digits would be left of sixteen"}
)
_SKIPPING = Choice("data.on_bad_sample=skip", "data.on_bad_sample=stop", needs=frozenset({Ability.ANY_SIZES}))


def refusals(what: str, needs: Ability, config: TrainConfig, loss: Any, *, instead: str | None = None) -> list[str]:
    """Why something that no config asks for, such as a measurement by itself, cannot be had with this one."""
    chosen = choices_of(config, loss)
    return [error for one in chosen for error in conflicts([Choice(what, instead, frozenset({needs})), one])]


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

"""Settings that exclude each other: the choices of a config for `conflicts`, and further checks."""

from __future__ import annotations

from typing import Any, Literal

from largebatch.batch.ramp import BatchRamp
from largebatch.gradient import choices
from largebatch.gradient.choices import Ability, Choice, conflicts
from largebatch.gradient.options import GradientOptions
from largebatch.gradient.power_sgd import PowerSGDOptions
from largebatch.gradient.sharpness_aware import SharpnessAware
from largebatch.run.config.schema import TrainConfig

_FEWEST_TO_SPLIT = 4


def gradient_options(config: TrainConfig) -> GradientOptions:
    """The options of the gradient that follow from the config alone; model and data add more later."""
    return GradientOptions(
        ordered=config.batch.reduction == "ordered",
        exact_batch_norm=config.batch_norm == "exact",
        compression=config.precision.gradient_compression,
        powersgd=_power_sgd(config),
        bucket_mb=config.precision.bucket_mb,
        halves_micro_batches=config.batch.on_out_of_memory == "lower",
        recompute_every=config.observers.recompute.every,
        sharpness_aware=_sharpness_aware(config),
    )


def _sharpness_aware(config: TrainConfig) -> SharpnessAware | None:
    sam = config.sam
    by: Literal["micro", "global"] = "global" if sam.is_global else "micro"
    return None if sam.rho is None else SharpnessAware(sam.rho, by, sam.adaptive)


def _power_sgd(config: TrainConfig) -> PowerSGDOptions:
    chosen = config.precision.gradient_compression == "powersgd"
    return PowerSGDOptions(**config.precision.powersgd.model_dump()) if chosen else PowerSGDOptions()


def choices_of(config: TrainConfig, loss: Any) -> list[Choice]:
    """All choices of a config that need an ability or take one away; see `conflicts`.

    Args:
        config: of the run.
        loss: made from the config; None: it could not be made.
    """
    precision, observers, micro = config.precision, config.observers, config.batch.micro
    made = [
        *gradient_options(config).choices(loss, precision=precision.compute, name=str(config.loss["_target_"])),
        micro is not None
        and Choice(f"batch.micro={micro}", "batch.micro=null", lacks={Ability.SMALLER_PARTS: _PINNED}),
        config.batch.max_micro == 1 and _ONE_SAMPLE,
        observers.noise_scale.every is not None and choices.noise_scale(observers.noise_scale.every),
        observers.ledger.enabled and choices.ledger(),
        precision.deterministic is False and _VARYING,
        observers.communication.every is not None and choices.communication(observers.communication.every),
        observers.sharpness.every is not None and choices.sharpness(observers.sharpness.every),
        precision.activation_checkpointing and _CHECKPOINTING,
        precision.compile and _compiled(precision.compile),
        config.data.skips and _SKIPPING,
        config.guard.acts and choices.guard(config.guard.policy),
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
_VARYING = choices.varying_kernels("precision.deterministic=false", "precision.deterministic=null")
_SKIPPING = Choice("data.on_bad_sample=skip", "data.on_bad_sample=stop", needs=frozenset({Ability.ANY_SIZES}))


def _compiled(how: bool | str) -> Choice:
    return Choice(
        f"precision.compile={'true' if how is True else how}",
        "precision.compile=false",
        lacks={
            Ability.PYTHON_FORWARD: "forward passes would have to wait for each other in Python",
            Ability.SECOND_DERIVATIVES: "torch.compile has no second derivatives. `largebatch measure sharpness` takes "
            "them after the run",
        },
    )


def refusals(what: str, needs: Ability, config: TrainConfig, loss: Any, *, instead: str | None = None) -> list[str]:
    """Errors if `what`, such as a measurement, needs an ability that this config takes away.

    Args:
        what: name of the activity in errors.
        needs: the ability.
        config: of the run.
        loss: made from the config.
        instead: its remedy; None: there is none.
    """
    chosen = choices_of(config, loss)
    return [error for one in chosen for error in conflicts([Choice(what, instead, frozenset({needs})), one])]


def combination_problems(config: TrainConfig, *, world_size: int) -> list[str]:
    """Errors for settings of the global batch that exclude each other, or have no effect on `world_size` ranks."""
    return [
        *_compression_problems(config, world_size),
        *_limit_problems(config),
        *config.sam.problems(config.batch.micro),
        *config.cost.problems(),
    ]


def _compression_problems(config: TrainConfig, world_size: int) -> list[str]:
    compression = config.precision.gradient_compression
    if compression != "powersgd" and PowerSGDOptions(**config.precision.powersgd.model_dump()) != PowerSGDOptions():
        return [
            f"precision.powersgd: has no effect with precision.gradient_compression={compression}. Leave it as it is, "
            "or set precision.gradient_compression=powersgd."
        ]
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
    """Errors of `observers.noise_scale`; `ramp` is None if it could not be solved."""
    options = config.observers.noise_scale
    if options.every is None:
        unused = [
            name
            for name, is_set in (
                ("groups", options.groups is not None),
                (f"geometry={options.geometry}", options.geometry != "euclidean"),
            )
            if is_set
        ]
        remedy = "has no effect without measurements. Set observers.noise_scale.every=10."
        return [f"observers.noise_scale.{name}: {remedy}" for name in unused]
    errors = []
    if "optimizer" in (options.groups or {}):
        errors.append(
            "observers.noise_scale.groups.optimizer: its keys, noise_scale/optimizer/*, are those of the optimizer's "
            "geometry (observers.noise_scale.geometry). Give the group another name."
        )
    single = [plan.global_batch_size for plan in ramp.plans if len(plan.micro_batch_sizes) == 1] if ramp else []
    if single and min(single) < _FEWEST_TO_SPLIT:
        errors.append(
            f"observers.noise_scale.every={options.every}: compares gradients of parts of a batch, and a step with one "
            f"micro-batch is split into two parts; that needs {_FEWEST_TO_SPLIT} samples, and a step has "
            f"{min(single)}. Raise batch.total, or use more processes."
        )
    return errors


def coupled_problems(config: TrainConfig, ramp: BatchRamp | None, train_plain: Any, validation: Any) -> list[str]:
    """Errors of a run whose loss compares samples; `ramp` is None if it could not be solved."""
    name, problems = config.loss["_target_"], []
    if ramp is not None and min(plan.global_batch_size for plan in ramp.plans) < 2:
        problems.append(f"batch.total=1: {name} compares the samples of a batch. Use at least 2.")
    if config.observers.evaluation.micro < 2:
        problems.append(
            f"observers.evaluation.micro=1: {name} compares the samples of an evaluation batch. Use at least 2."
        )
    if len(train_plain) < len(validation):
        problems.append(
            f"data.validation: has {len(validation)} samples and the training set {len(train_plain)}: {name} depends "
            "on the size of an evaluation batch, which would differ between the two. Use a validation set that is not "
            "larger, or raise data.limit."
        )
    return problems

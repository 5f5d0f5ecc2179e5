"""Reads `batch.ramp.by=noise_scale`: the candidates of a batch that grows by the noise scale of its own run."""

from __future__ import annotations

from collections.abc import Callable

from largebatch.batch.noise_growth import GrowthRule
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import RampConfig, TrainConfig

_BY_DEFAULT = {"factor": 1.0, "confirmations": 3, "at_least": None}


def solve_growth(
    config: TrainConfig, total: int, *, num_samples: int, length: int, samples: Callable[[str], int]
) -> GrowthRule:
    """The rule of a run of `length` samples whose first batch is `total`.

    Args:
        config: of the run, with `batch.ramp.by=noise_scale`.
        total: samples per step at the start.
        num_samples: of the training set.
        length: of the run, in samples.
        samples: reads a duration.

    Raises:
        ConfigError: with all errors.
    """
    ramp = config.batch.ramp
    at_least = 0 if ramp.at_least is None else samples(ramp.at_least)
    errors = [*_exclusive(ramp), *_measurable(config), *_candidates(ramp, total, num_samples, length)]
    if at_least >= length:
        errors.append(
            f"batch.ramp.at_least={ramp.at_least}: is {at_least:,} samples, and the run has {length:,}: the batch "
            "could never grow. Ask for less."
        )
    if errors:
        raise ConfigError(errors)
    return GrowthRule(
        (total, *ramp.totals),
        total_samples=length,
        factor=ramp.factor,
        confirmations=ramp.confirmations,
        at_least=at_least,
    )


def settings_without_growth(ramp: RampConfig) -> list[str]:
    """Errors for settings of a batch that grows by the noise scale, in a run whose batch does not."""
    return [
        f"batch.ramp.{name}={value}: has no effect with batch.ramp.by={ramp.by}. Remove it, or set "
        "batch.ramp.by=noise_scale."
        for name, default in _BY_DEFAULT.items()
        if (value := getattr(ramp, name)) != default
    ]


def _exclusive(ramp: RampConfig) -> list[str]:
    errors = []
    if ramp.milestones:
        errors.append(
            f"batch.ramp.by=noise_scale: the run decides where its batch grows, and batch.ramp.milestones="
            f"{ramp.milestones} say it beforehand. Leave milestones empty, or set batch.ramp.by=milestones."
        )
    if ramp.in_place_of_decay:
        errors.append(
            "batch.ramp.by=noise_scale: a measurement decides where the batch grows, and with "
            "batch.ramp.in_place_of_decay=true the decay of the rate does. Choose one of them."
        )
    return errors


def _measurable(config: TrainConfig) -> list[str]:
    errors = []
    if config.observers.noise_scale.every is None:
        errors.append(
            "batch.ramp.by=noise_scale: the run has to measure the noise scale. Set observers.noise_scale.every=10."
        )
    if config.batch.micro is None:
        errors.append(
            "batch.ramp.by=noise_scale: the noise is measured from differences between micro-batches, whose boundaries "
            "depend on the number of ranks, and so would the batch. Pin them with batch.micro=SIZE."
        )
    return errors


def _candidates(ramp: RampConfig, total: int, num_samples: int, length: int) -> list[str]:
    if not ramp.totals:
        return ["batch.ramp.by=noise_scale: has no batch to grow to. List some, such as batch.ramp.totals=[512,1024]."]
    errors, all_of_them = [], [total, *ramp.totals]
    if all_of_them != sorted(set(all_of_them)):
        errors.append(
            f"batch.ramp.totals={ramp.totals}: with batch.ramp.by=noise_scale the batch only grows, from "
            f"batch.total={total} on. Sort them, without repetition, all above {total}."
        )
    most = max(ramp.totals)
    if most > num_samples:
        errors.append(
            f"batch.ramp.totals: a batch of {most} samples, and the training set has {num_samples}: a step uses each "
            f"at most once. Use at most {num_samples}."
        )
    elif total + most > length:
        errors.append(
            f"batch.ramp.totals: a batch of {most} samples never fits into a run of {length:,} samples that begins "
            f"with {total}. Remove it, or train longer."
        )
    return errors

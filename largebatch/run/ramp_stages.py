"""Solves `batch.ramp`: the batch sizes of a run, their first samples, and their effect on the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from largebatch.batch.duration import Duration
from largebatch.batch.ramp import decay_left_over, totals_in_place_of_decay
from largebatch.batch.scaling import RATE_EXPONENTS
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import ScheduleConfig, TrainConfig

DEFAULT_MILESTONES_IN_SIXTHS = (2, 4, 5)  # of the length


@dataclass(frozen=True)
class Stages:
    """Global batch sizes over a run.

    Attributes:
        totals: samples per step; the first from sample 0 on.
        milestones: samples at which the later totals begin.
        decay: if the batch grows in place of a decay of the rate: the decay that remains in each stage, as a factor of
            the first peak rate. None: the scaling rule acts on every batch.
    """

    totals: tuple[int, ...]
    milestones: tuple[int, ...] = ()
    decay: tuple[float, ...] | None = None


def solve_stages(
    config: TrainConfig, total: int, *, num_samples: int, length: int, samples: Callable[[str], int]
) -> Stages:
    """The stages of a run of `length` samples whose first batch is `total`.

    Args:
        config: of the run.
        total: samples per step at the start.
        num_samples: of the training set.
        length: of the run, in samples.
        samples: reads a duration.

    Raises:
        ConfigError: with all errors of the ramp.
    """
    ramp, schedule = config.batch.ramp, config.schedule
    errors = _conflicts(config)
    if errors:
        raise ConfigError(errors)
    if ramp.in_place_of_decay:
        milestones, gamma = decay_milestones(schedule, length, samples), schedule.gamma or 1.0
        largest = ramp.max_total or max(num_samples // 10, total)
        exponent = RATE_EXPONENTS[config.scaling.rule]
        grown = totals_in_place_of_decay(
            total, num_milestones=len(milestones), gamma=gamma, max_total=largest, exponent=exponent
        )
        left = (1.0, *decay_left_over(total, grown, gamma=gamma, exponent=exponent))
        stages = Stages((total, *grown), milestones, left)
    else:
        stages = Stages((total, *ramp.totals), tuple(samples(text) for text in ramp.milestones))
    errors = _milestone_problems(ramp.milestones, stages, length)
    if max(stages.totals[1:], default=0) > num_samples:
        errors.append(
            f"batch.ramp: a batch of {max(stages.totals[1:])} samples, and the training set has {num_samples}: a step "
            f"uses each at most once. Use at most {num_samples}."
        )
    if errors:
        raise ConfigError(errors)
    return stages


def decay_milestones(schedule: ScheduleConfig, length: int, samples: Callable[[str], int]) -> tuple[int, ...]:
    """The samples at which a step decay lowers the rate; the default is shares of the run."""
    if schedule.decay != "step":
        return ()
    if schedule.milestones is None:
        return tuple(length * numerator // 6 for numerator in DEFAULT_MILESTONES_IN_SIXTHS)
    return tuple(samples(text) for text in schedule.milestones)


def _conflicts(config: TrainConfig) -> list[str]:
    ramp, schedule = config.batch.ramp, config.schedule
    errors = []
    if len(ramp.milestones) != len(ramp.totals):
        errors.append(
            f"batch.ramp: {len(ramp.milestones)} milestones and {len(ramp.totals)} totals: each milestone needs the "
            "batch size that begins there. Write as many milestones as totals."
        )
    if ramp.in_place_of_decay and (ramp.milestones or ramp.totals):
        errors.append(
            "batch.ramp.in_place_of_decay=true: the batch grows at schedule.milestones, by schedule.gamma. Leave "
            "batch.ramp.milestones and batch.ramp.totals empty, or in_place_of_decay false."
        )
    if ramp.in_place_of_decay and not RATE_EXPONENTS[config.scaling.rule]:
        errors.append(
            f"batch.ramp.in_place_of_decay=true: with scaling.rule={config.scaling.rule} the best rate is the same for "
            "every batch, so no larger batch replaces a lower rate. Use scaling=linear (SGD), scaling=sqrt (adaptive "
            "methods), or let the rate decay."
        )
    if ramp.in_place_of_decay and (schedule.decay != "step" or schedule.gamma == 1):
        errors.append(
            f"batch.ramp.in_place_of_decay=true: replaces a step decay, and schedule.decay="
            f"{schedule.decay_name}{', schedule.gamma=1' if schedule.decay == 'step' else ''}. Use schedule=step with "
            "a gamma below 1."
        )
    if ramp.max_total is not None and not ramp.in_place_of_decay:
        errors.append(f"batch.ramp.max_total={ramp.max_total}: has no effect without in_place_of_decay. Remove it.")
    if isinstance(config.batch.total, int) and (ramp.max_total or config.batch.total) < config.batch.total:
        errors.append(f"batch.ramp.max_total={ramp.max_total}: is below batch.total={config.batch.total}. Raise it.")
    if ramp.is_used:
        errors += [
            f"{key}={text}: with a ramp a number of steps is not a number of samples. Write it in ep or samples."
            for key, text in _durations(config)
            if text is not None and Duration.parse(text).unit == "steps"
        ]
    return errors


def _durations(config: TrainConfig) -> list[tuple[str, str | None]]:
    return [
        ("length", config.length),
        ("schedule.warmup", config.schedule.warmup),
        ("cooldown.length", config.cooldown.length),
        *((f"schedule.{name}", getattr(config.schedule, name)) for name in ("cooldown", "cycle", "timescale")),
        *(("schedule.milestones", text) for text in config.schedule.milestones or []),
        *(("batch.ramp.milestones", text) for text in config.batch.ramp.milestones),
        ("observers.evaluation.every", config.observers.evaluation.every),
        ("observers.checkpoint.every", config.observers.checkpoint.every),
        ("observers.early_stopping.patience", config.observers.early_stopping.patience),
    ]


def _milestone_problems(given: list[str], stages: Stages, length: int) -> list[str]:
    """Errors of the ramp's own milestones; the schedule checks its own."""
    if not given:
        return []
    errors = []
    if list(stages.milestones) != sorted(set(stages.milestones)):
        errors.append(f"batch.ramp.milestones={given}: must increase from one to the next. Sort them.")
    outside = [text for text, at in zip(given, stages.milestones, strict=True) if not 0 < at < length]
    if outside:
        errors.append(
            f"batch.ramp.milestones={given}: {outside[0]} is not inside the run of {length} samples, so its batch "
            "would never be used or always. Move or remove it."
        )
    same = [size for size, before in zip(stages.totals[1:], stages.totals, strict=False) if size == before]
    if same:
        errors.append(f"batch.ramp.totals: {same[0]} follows {same[0]}, which has no effect. Remove that milestone.")
    return errors

"""Solves `batch.ramp`: the batch sizes of a run, their first samples, and their effect on the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from largebatch.batch.duration import Duration
from largebatch.batch.growth import DEFAULT_STAGE_FACTOR, GROWTHS, Growth
from largebatch.batch.noise_growth import GrowthRule
from largebatch.batch.ramp import decay_left_over, totals_in_place_of_decay
from largebatch.batch.scaling import RATE_EXPONENTS
from largebatch.batch.schedule import Schedule
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import ScheduleConfig, TrainConfig
from largebatch.run.config.targets import TargetError
from largebatch.run.growth_rule import settings_without_growth, solve_growth

DEFAULT_MILESTONES_IN_SIXTHS = (2, 4, 5)  # of the length


@dataclass(frozen=True)
class Stages:
    """Global batch sizes over a run.

    Attributes:
        totals: samples per step; the first from sample 0 on.
        milestones: samples at which the later totals begin.
        decay: if the batch grows in place of a decay of the rate: factor of the first peak rate in each stage. Of a
            step decay, what remains of it; of any other, what the batch gives back, and the schedule goes on falling.
            None: the scaling rule acts on every batch.
        growth: when the run goes on to the next of `totals`, where it decides that while it trains; there are no
            milestones then.
    """

    totals: tuple[int, ...]
    milestones: tuple[int, ...] = ()
    decay: tuple[float, ...] | None = None
    growth: GrowthRule | None = None


def solve_stages(
    config: TrainConfig,
    total: int,
    *,
    num_samples: int,
    length: int,
    samples: Callable[[str], int],
    decaying: Callable[[], Schedule],
    until: int | None = None,
) -> Stages:
    """The stages of a run of `length` samples whose first batch is `total`.

    Args:
        config: of the run.
        total: samples per step at the start.
        num_samples: of the training set.
        length: of the run, in samples.
        samples: reads a duration.
        decaying: makes the schedule that the batch would grow in place of.
        until: position at which the decay ends, and the growth with it, because a cooldown begins; None: it does not.

    Raises:
        ConfigError: with all errors of the ramp; not of a schedule that cannot be made.
    """
    ramp, schedule = config.batch.ramp, config.schedule
    errors = _conflicts(config)
    if errors:
        raise ConfigError(errors)
    if ramp.by == "noise_scale":
        rule = solve_growth(config, total, num_samples=num_samples, length=length, samples=samples)
        return Stages(rule.totals, growth=rule)
    if ramp.in_place_of_decay:
        largest = ramp.max_total or max(num_samples // 10, total)
        if schedule.decay == "step":
            stages = _of_steps(config, total, largest, decay_milestones(schedule, length, samples))
        else:
            stages = _of_decay(config, total, largest, decaying)
        stages = _without_later(stages, until)
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


def rule_until(end: int, stages: Stages | None) -> GrowthRule | None:
    """The rule of a run that ends there, if its batch grows by it: a cooldown ends before the length of its trunk."""
    rule = None if stages is None else stages.growth
    return None if rule is None else replace(rule, total_samples=end)


def growth_of(config: TrainConfig) -> Growth:
    """How the batch grows in place of the decay."""
    ramp = config.batch.ramp
    exponent, factor = RATE_EXPONENTS[config.scaling.rule], ramp.stage_factor or DEFAULT_STAGE_FACTOR
    return Growth(exponent, GROWTHS[ramp.growth or "full"], factor)


def _of_steps(config: TrainConfig, total: int, largest: int, milestones: tuple[int, ...]) -> Stages:
    growth, gamma, count = growth_of(config), config.schedule.gamma or 1.0, len(milestones)
    grown = totals_in_place_of_decay(
        total, num_milestones=count, gamma=gamma, max_total=largest, exponent=1 / growth.exponent
    )
    if max(grown, default=total) == total:
        at = f"at {count} milestones of schedule.gamma={gamma:g}"
        raise ConfigError([_never_grows(total, largest, at, "lower schedule.gamma")])
    left = (1.0, *decay_left_over(total, grown, gamma=gamma, exponent=growth.rate_exponent))
    return Stages((total, *grown), milestones, left)


def _of_decay(config: TrainConfig, total: int, largest: int, decaying: Callable[[], Schedule]) -> Stages:
    try:
        schedule = decaying()
    except (ConfigError, TargetError, ValueError):
        return Stages((total,))  # reported with the schedule of the run, which is made alike
    growth, length = growth_of(config), schedule.total_samples
    try:
        later = growth.stages(schedule, total, start=schedule.warmup_samples, end=length, largest=largest)
    except ValueError as error:
        raise ConfigError(
            [f"batch.ramp.in_place_of_decay=true: schedule.decay={schedule.decay_name}: {error}"]
        ) from None
    if not later:
        when = f"in stages of {growth.stage_factor:g} of the rate, within {length:,} samples"
        raise ConfigError([_never_grows(total, largest, when, "lower batch.ramp.stage_factor, train longer")])
    milestones, totals = zip(*later, strict=True)
    back = tuple(growth.rate_factor(size, total) for size in totals)
    return Stages((total, *totals), milestones, (1.0, *back))


def _never_grows(total: int, largest: int, when: str, remedy: str) -> str:
    return (
        f"batch.ramp.in_place_of_decay=true: the batch of {total} never grows: at most {largest} (batch.ramp."
        f"max_total; null: a tenth of the training set), {when}. Raise max_total, {remedy}, or let the rate fall."
    )


def _without_later(stages: Stages, until: int | None) -> Stages:
    """The stages that have begun at `until`."""
    if until is None or stages.decay is None:
        return stages
    count = sum(one <= until for one in stages.milestones)
    return Stages(stages.totals[: count + 1], stages.milestones[:count], stages.decay[: count + 1])


def decay_milestones(schedule: ScheduleConfig, length: int, samples: Callable[[str], int]) -> tuple[int, ...]:
    """The samples at which a step decay lowers the rate; the default is shares of the run."""
    if schedule.decay != "step":
        return ()
    if schedule.milestones is None:
        return tuple(length * numerator // 6 for numerator in DEFAULT_MILESTONES_IN_SIXTHS)
    return tuple(samples(text) for text in schedule.milestones)


def _conflicts(config: TrainConfig) -> list[str]:
    ramp, schedule = config.batch.ramp, config.schedule
    errors = settings_without_growth(ramp) if ramp.by == "milestones" else []
    if len(ramp.milestones) != len(ramp.totals) and ramp.by == "milestones":
        errors.append(
            f"batch.ramp: {len(ramp.milestones)} milestones and {len(ramp.totals)} totals: each milestone needs the "
            "batch size that begins there. Write as many milestones as totals."
        )
    if ramp.in_place_of_decay and ramp.by == "milestones" and (ramp.milestones or ramp.totals):
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
    if ramp.in_place_of_decay and (schedule.decay == "constant" or schedule.gamma == 1):
        errors.append(
            f"batch.ramp.in_place_of_decay=true: replaces a decay, and schedule.decay={schedule.decay_name}"
            f"{', schedule.gamma=1' if schedule.decay == 'step' else ''} has none. Use one that falls, such as "
            "schedule=cosine, or schedule=step with a gamma below 1."
        )
    if ramp.in_place_of_decay and schedule.decay == "step" and ramp.stage_factor is not None:
        errors.append(
            f"batch.ramp.stage_factor={ramp.stage_factor}: has no effect with schedule=step, where the batch grows at "
            "schedule.milestones by schedule.gamma. Remove it."
        )
    errors += [
        f"batch.ramp.{name}={value}: has no effect without in_place_of_decay. Remove it."
        for name in ("max_total", "growth", "stage_factor")
        if (value := getattr(ramp, name)) is not None and not ramp.in_place_of_decay
    ]
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
        ("batch.ramp.at_least", config.batch.ramp.at_least),
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

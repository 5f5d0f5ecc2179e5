"""Derives warmup and decay of a run from its config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from largebatch.batch.decays import Cooldown, InverseSqrt, Restarts
from largebatch.batch.scaling import ScaledValue
from largebatch.batch.schedule import Decay, Schedule
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import ScheduleConfig, TrainConfig
from largebatch.run.own_decay import own_decay, require_pure
from largebatch.run.ramp_stages import decay_milestones

DEFAULT_WARMUP, LARGEST_DEFAULT_WARMUP = "2ep", 0.1  # of the length
DEFAULT_COOLDOWN_PARTS = 5  # a fifth of the run after the warmup (Hagele et al. 2024)
DEFAULT_CYCLES = 3


def schedule_of(
    config: TrainConfig, peak: ScaledValue, length: int, samples: Callable[[str], int], *, base: float
) -> Schedule:
    """The schedule of a run of `length` samples.

    Args:
        config: of the run.
        peak: rate of the first batch.
        length: of the run, in samples.
        samples: the samples of a duration.
        base: the base rate for the momentum of the first batch.

    Raises:
        ConfigError, TargetError, ValueError: if it makes no sense, or a decay of the user's own is none.
    """
    schedule = config.schedule
    warmup_samples, start_factor = _warmup(config, peak.value, base, length, samples)
    given = {
        name: value
        for name, decays in _DECAYS_WITH.items()
        if name in _OF_SCHEDULE and schedule.decay_name in decays and (value := getattr(schedule, name)) is not None
    }
    if "gamma" in given:
        given["step_gamma"] = given.pop("gamma")
    length = max(length, 1)
    solved = Schedule(
        total_samples=length,
        warmup_samples=warmup_samples,
        warmup_start_factor=start_factor,
        warmup_kind=schedule.warmup_kind,
        decay=_decay(schedule, length, warmup_samples, samples),
        step_samples=decay_milestones(schedule, length, samples),
        **given,
    )
    if config.batch.ramp.in_place_of_decay and schedule.decay == "step":  # its stages have the rest of the decay
        return dataclasses.replace(solved, decay="constant", step_samples=())
    if schedule.decay_name == "own":
        require_pure(solved)
    return solved


def _decay(schedule: ScheduleConfig, length: int, warmup: int, samples: Callable[[str], int]) -> str | Decay:
    """A decay of `Schedule` by name, one of `largebatch.batch.decays`, or the user's own."""
    whole = length - warmup
    if not isinstance(schedule.decay, str):
        return own_decay(schedule.decay, total_samples=length, warmup_samples=warmup)
    if schedule.decay == "wsd":
        cooldown = whole // DEFAULT_COOLDOWN_PARTS if schedule.cooldown is None else samples(schedule.cooldown)
        return Cooldown(cooldown, schedule.cooldown_shape or "linear")
    if schedule.decay == "restarts":
        growth = schedule.cycle_growth or 1.0
        parts = sum(growth**number for number in range(DEFAULT_CYCLES))
        return Restarts(math.ceil(whole / parts) if schedule.cycle is None else samples(schedule.cycle), growth)
    if schedule.decay == "inverse_sqrt":
        usual = warmup or max(_usual_warmup(length, samples), 1)
        return InverseSqrt(usual if schedule.timescale is None else samples(schedule.timescale))
    return schedule.decay


def _warmup(
    config: TrainConfig, peak: float, base: float, length: int, samples: Callable[[str], int]
) -> tuple[int, float]:
    """Samples of the warmup, and its first rate as a share of the peak.

    A default warmup without effect is left out; a configured one without effect is an error.
    """
    schedule = config.schedule
    rises = peak > base
    if schedule.warmup is not None:
        num_samples = samples(schedule.warmup)
    elif rises or schedule.warmup_from == "zero":
        num_samples = _usual_warmup(length, samples)
    else:
        num_samples = 0
    if schedule.warmup is None and schedule.warmup_from == "zero" and num_samples < samples("2steps"):
        num_samples = 0  # a warmup from zero would only add a step with rate 0
    from_base = schedule.warmup_from == "base_lr" or (schedule.warmup_from is None and rises)
    is_wanted = num_samples > 0 or schedule.warmup is None
    if from_base and not rises and is_wanted:
        raise ConfigError(
            [f"schedule.warmup_from=base_lr: the peak rate, {peak:.6g}, is not above scaling.base_lr={base:.6g}, so a "
             "warmup from there has no effect. Use schedule.warmup_from=zero, or schedule.warmup=0ep for none."]
        )  # fmt: skip
    if schedule.warmup_kind == "constant" and not rises and schedule.warmup_from != "zero" and is_wanted:
        raise ConfigError(
            [f"schedule.warmup_kind=constant: holds scaling.base_lr={base:.6g} before the peak rate, and the peak rate "
             f"{peak:.6g} is not above it. Use schedule.warmup_kind=gradual, or a larger batch."]
        )  # fmt: skip
    return num_samples, base / peak if from_base and rises else 0.0


def _usual_warmup(length: int, samples: Callable[[str], int]) -> int:
    return min(samples(DEFAULT_WARMUP), int(length * LARGEST_DEFAULT_WARMUP))


# Settings of a schedule that only some decays have.
_DECAYS_WITH = {
    "end_factor": ("linear", "cosine", "quarter_cosine", "polynomial", "wsd", "restarts"),
    "power": ("polynomial",),
    "milestones": ("step",),
    "gamma": ("step",),
    "cooldown": ("wsd",),
    "cooldown_shape": ("wsd",),
    "cycle": ("restarts",),
    "cycle_growth": ("restarts",),
    "timescale": ("inverse_sqrt",),
}
_OF_SCHEDULE = ("end_factor", "power", "gamma")  # the others become lengths, or belong to a decay


def settings_of_another_decay(schedule: ScheduleConfig) -> list[str]:
    """Errors for settings that the chosen decay does not use."""
    return [
        f"schedule.{name}={value}: has no effect with schedule.decay={schedule.decay_name}, it belongs to "
        f"{', '.join(decays)}. Remove it, or choose the schedule with schedule=NAME."
        for name, decays in _DECAYS_WITH.items()
        if (value := getattr(schedule, name)) is not None and schedule.decay_name not in decays
    ]

"""Derives the numbers of a run from its config, each with its rule: batch plan, learning rate, schedule, steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from largebatch.batch.duration import Duration
from largebatch.batch.noise_growth import GrowthRule
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.scaling import ScaledValue
from largebatch.batch.schedule import Schedule
from largebatch.run.config.combinations import combination_problems, noise_scale_problems
from largebatch.run.config.findings import Findings
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.run.following import Following, Values, following_of, scaled_stages
from largebatch.run.ramp_stages import Stages, rule_until, solve_stages
from largebatch.run.schedule import schedule_of, settings_of_another_decay
from largebatch.run.stage_rates import IN_PLACE_OF_DECAY, rule_totals, stage_rates
from largebatch.run.trunk import Trunk, cooled_schedule, trunk_of
from largebatch.training.observers.growth import decided
from largebatch.training.weight_average import AverageSettings

PROFILE_WARMUP_STEPS = 5


@dataclass(frozen=True)
class RunNumbers:
    """The numbers of a run, for a training set and a number of ranks.

    Attributes:
        ramp: samples seen -> plan: global batch -> micro-batches -> ranks.
        peak_lrs: peak learning rate of each plan of the ramp, and its provenance.
        schedule: samples seen -> factor of the peak.
        num_samples: size of the training set.
        evaluate_every, checkpoint_every: in samples; None: only at the end.
        sharpness_every: in samples; None: never.
        tokens_per_sample, average: of every sample, of the weights; None: they differ; there is none.
        trunk: the place at which the run leaves another one for a cooldown; None: it is a run of its own.
        scaled: of each plan of the ramp: what follows its batch besides the rate, by name.
        following: the rule that it follows; None: nothing but the rate does.
        growth: lets the run choose among the plans of the ramp while it trains; None: the ramp is known beforehand.
    """

    ramp: BatchRamp
    peak_lrs: tuple[ScaledValue, ...]
    schedule: Schedule
    num_samples: int
    evaluate_every: int | None
    checkpoint_every: int | None
    sharpness_every: int | None = None
    tokens_per_sample: int | None = None
    average: AverageSettings | None = None
    trunk: Trunk | None = None
    scaled: tuple[Values, ...] = ()
    following: Following | None = None
    growth: GrowthRule | None = None

    @property
    def plan(self) -> BatchPlan:
        """Plan of the first step; without a ramp, of all steps."""
        return self.ramp.plans[0]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run, whose last samples may not fill a batch; with `growth` the most it takes."""
        return self.ramp.num_steps(self.schedule.total_samples)

    @property
    def steps_without_growth(self) -> int | None:
        """Steps at the first batch throughout; None: the batch does not grow in place of a decay."""
        grows = self.peak_lrs[-1].rule == IN_PLACE_OF_DECAY
        return self.schedule.total_samples // self.plan.global_batch_size if grows else None

    @property
    def num_consumed(self) -> int:
        """Samples that these steps consume."""
        return self.ramp.samples_after(self.schedule.total_samples)

    def lr_at(self, samples_seen: int) -> float:
        """Learning rate of the step that starts after `samples_seen` samples."""
        return self.peak_lrs[self.ramp.stage_at(samples_seen)].value * self.schedule(samples_seen)


def derive(config: TrainConfig, *, num_samples: int, world_size: int) -> RunNumbers:
    """Solve the batch plan, the learning rate and the schedule for a training set and a number of ranks.

    Raises:
        ConfigError: with all errors.
    """
    findings = Findings()
    total = num_samples if config.batch.total == "full" else config.batch.total
    findings.errors += _batch_problems(config, total, num_samples)
    findings.errors += combination_problems(config, world_size=world_size)

    def samples(text: str) -> int:
        return Duration.parse(text).samples(num_samples=num_samples, global_batch_size=total)

    length, trunk = samples(config.length), findings.attempt("cooldown", lambda: trunk_of(config))
    rate, until = partial(stage_rates, config, Stages((total,))), None if trunk is None else trunk.samples_seen
    given: dict[str, Any] = {"num_samples": num_samples, "length": length, "samples": samples, "until": until}
    given["decaying"] = lambda: _schedule(config, rate()[0], config.scaling.base_lr, length, samples)
    stages = findings.attempt("batch.ramp", lambda: solve_stages(config, total, **given))
    # Report errors of the first batch beside errors of the ramp.
    ramp = None
    if max((stages or Stages((total,))).totals) <= num_samples:  # an impossible batch could have billions of parts
        ramp = findings.attempt("batch", lambda: _ramp(config, stages or Stages((total,)), world_size, trunk))
    followed = findings.attempt("scaling", lambda: _follow(config, stages or Stages((total,)), samples))
    if length < total:
        findings.errors.append(
            f"length={config.length}: {length} samples are less than one batch of {total}. Train longer."
        )
    findings.errors += settings_of_another_decay(config.schedule)
    schedule = None
    if followed:
        place = None if trunk is None else (trunk, ramp.at(trunk.samples_seen).global_batch_size if ramp else total)
        base = _base_lr(config, followed[0], total)
        solved = partial(_schedule, config, followed[1][0], base, length, samples, place)
        schedule = findings.attempt("schedule", solved)
    findings.errors += noise_scale_problems(config, ramp)
    end, start = schedule.total_samples if schedule else length, trunk.samples_seen if trunk else 0
    findings.errors += _profile_problems(config, ramp.num_steps(end, start) if ramp else (end - start) // total)
    evaluate_every = findings.attempt("", lambda: _interval("evaluation", config.observers.evaluation.every, samples))
    checkpoint_every = findings.attempt("", lambda: _interval("checkpoint", config.observers.checkpoint.every, samples))
    sharpness_every = findings.attempt("", lambda: _interval("sharpness", config.observers.sharpness.every, samples))
    findings.raise_if_any()
    assert ramp is not None
    assert followed is not None
    assert schedule is not None
    (following, peaks, scaled), every = followed, (evaluate_every, checkpoint_every, sharpness_every)
    growth, own = rule_until(schedule.total_samples, stages), (scaled, following)
    return RunNumbers(ramp, peaks, schedule, num_samples, *every, None, None, trunk, *own, growth)


def _batch_problems(config: TrainConfig, total: int, num_samples: int) -> list[str]:
    errors = []
    if total > num_samples:
        errors.append(
            f"batch.total={total}: the training set has {num_samples} samples, and a step uses each at most once. "
            "Use at most that many, or batch.total=full."
        )
    if config.batch.reduction == "ordered" and config.batch.micro is None:
        errors.append(
            "batch.reduction=ordered: sums gradients in the order of the micro-batches, whose boundaries depend on the "
            "number of ranks. Pin them with batch.micro=SIZE."
        )
    return errors


def _schedule(
    config: TrainConfig,
    peak: ScaledValue,
    base: float,
    length: int,
    samples: Callable[[str], int],
    place: tuple[Trunk, int] | None = None,
) -> Schedule:
    """The schedule of a run that may leave a trunk at a place, at which its batch is so large."""
    whole = schedule_of(config, peak, length, samples, base=base)
    return whole if place is None else cooled_schedule(config, whole, *place, samples)


def solve_plan(config: TrainConfig, total: int, world_size: int) -> BatchPlan:
    """Split a global batch of `total` samples into micro-batches for the ranks, within the limits of the config."""
    if config.batch.micro is not None:
        return BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=config.batch.micro)
    return BatchPlan.solve(
        global_batch_size=total,
        world_size=world_size,
        max_micro_batch_size=config.batch.max_micro,
        prefers_equal=bool(config.precision.compile),  # each size is compiled by itself
    )


def peak_lr(config: TrainConfig, total: int) -> ScaledValue:
    """The peak learning rate that the rule of a config gives to a global batch of `total` samples."""
    return stage_rates(config, Stages((total,)))[0]


def _ramp(config: TrainConfig, stages: Stages, world_size: int, trunk: Trunk | None) -> BatchRamp:
    plans = tuple(solve_plan(config, total, world_size) for total in stages.totals)
    ramp = BatchRamp(plans, stages.milestones, None if stages.growth is None else (0,))
    return ramp if stages.growth is None or trunk is None else decided(ramp, trunk.decisions)


def _follow(
    config: TrainConfig, stages: Stages, samples: Callable[[str], int]
) -> tuple[Following | None, tuple[ScaledValue, ...], tuple[Values, ...]]:
    """The rule by which values follow the batch, the peak rate of each stage, and its other values."""
    following, rates = following_of(config, samples), stage_rates(config, stages)
    if following is None:
        return None, rates, tuple({} for _ in rates)
    totals = rule_totals(config, stages.totals)
    peaks = tuple(following.with_momentum(rate, total) for rate, total in zip(rates, totals, strict=True))
    return following, peaks, scaled_stages(following, totals)


def _base_lr(config: TrainConfig, following: Following | None, total: int) -> float:
    """The base rate for the momentum of the first batch."""
    base, (first,) = ScaledValue(config.scaling.base_lr, "none", "base_lr"), rule_totals(config, (total,))
    return base.value if following is None else following.with_momentum(base, first).value


def _profile_problems(config: TrainConfig, num_steps: int) -> list[str]:
    steps = config.observers.profile.steps
    if not steps or num_steps >= steps + PROFILE_WARMUP_STEPS:
        return []
    whose = "run has" if config.cooldown.checkpoint is None else "cooldown has"
    return [
        f"observers.profile.steps={steps}: the {whose} {num_steps} steps, and {PROFILE_WARMUP_STEPS} warm up. "
        "Train longer or record fewer."
    ]


def _interval(observer: str, text: str | None, samples: Callable[[str], int]) -> int | None:
    if text is None:
        return None
    interval = samples(text)
    if interval == 0:
        raise ConfigError([f"observers.{observer}.every={text}: an interval is above 0. Use null for only at the end."])
    return interval

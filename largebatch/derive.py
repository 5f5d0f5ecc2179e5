"""Every number of a run that follows from others, with the rule it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from largebatch.batch import BatchPlan
from largebatch.config import ConfigError
from largebatch.duration import Duration
from largebatch.report import Report
from largebatch.scaling import ScaledValue, scale_lr
from largebatch.schedule import Schedule
from largebatch.schema import ScheduleConfig, TrainConfig

PROFILE_WARMUP_STEPS = 5
PlanRow = tuple[str, str, str]


@dataclass(frozen=True)
class Derived:
    """What a config becomes for a data set and a number of ranks.

    Attributes:
        plan: global batch -> micro-batches -> ranks.
        peak_lr: peak learning rate and its provenance.
        schedule: samples seen -> factor of the peak.
        num_samples: size of the training set.
        num_steps: optimizer steps of the whole run; what is left of the length after them is less than a batch.
        evaluate_every, checkpoint_every: in samples; None: only at the end.
    """

    plan: BatchPlan
    peak_lr: ScaledValue
    schedule: Schedule
    num_samples: int
    num_steps: int
    evaluate_every: int | None
    checkpoint_every: int | None

    def lr_at(self, samples_seen: int) -> float:
        """Learning rate of the step that starts after `samples_seen` samples."""
        return self.peak_lr.value * self.schedule(samples_seen)

    def rows(self) -> list[PlanRow]:
        """(what, value, where it comes from), for people."""
        plan, schedule = self.plan, self.schedule
        first = [part.size for part in plan.micro_batches(0)]
        shares = [plan.rank_batch_size(rank) for rank in range(plan.world_size)]
        unused = schedule.total_samples - self.num_steps * plan.global_batch_size
        return [
            ("global batch", f"{plan.global_batch_size:,} samples", "batch.total"),
            ("ranks", f"{plan.world_size}", f"each {_span(shares)} samples per step"),
            (
                "micro-batches",
                f"{len(plan.micro_batch_sizes)} of {_span(plan.micro_batch_sizes)}",
                f"rank 0: {_shorten(first)}; one gradient all-reduce per step",
            ),
            ("training set", f"{self.num_samples:,} samples", f"{self.steps_per_epoch:.4g} steps per epoch"),
            (
                "steps",
                f"{self.num_steps:,}",
                f"{schedule.total_samples:,} samples // {plan.global_batch_size:,}"
                + (f"; the last {unused:,} samples do not fill a batch" if unused else ""),
            ),
            ("peak LR", f"{self.peak_lr.value:.6g}", f"{self.peak_lr.rule}: {self.peak_lr.explanation}"),
            (
                "warmup",
                f"{schedule.warmup_samples:,} samples",
                self._warmup_explained(),
            ),
            ("decay", schedule.decay, f"to {self.lr_at(schedule.total_samples):.6g}"),
        ]

    def _warmup_explained(self) -> str:
        if not self.schedule.warmup_samples:
            return "none"
        if self.schedule.warmup_start_factor == 1.0:
            return "without effect: the peak is not above the base rate, from which it would start"
        return f"from {self.lr_at(0):.6g}"

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps per pass over the training set."""
        return self.num_samples / self.plan.global_batch_size

    def record(self) -> dict[str, Any]:
        """The same as plain values, for plan.json and the trackers."""
        plan = self.plan
        return {
            "global_batch_size": plan.global_batch_size,
            "world_size": plan.world_size,
            "grad_accum_steps": plan.grad_accum_steps,
            "max_micro_batch_size": plan.max_micro_batch_size,
            "rank_batch_sizes": [plan.rank_batch_size(rank) for rank in range(plan.world_size)],
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "total_samples": self.schedule.total_samples,
            "peak_lr": {
                "value": self.peak_lr.value,
                "rule": self.peak_lr.rule,
                "formula": self.peak_lr.formula,
                "inputs": self.peak_lr.inputs,
            },
            "warmup_samples": self.schedule.warmup_samples,
            "warmup_start_lr": self.lr_at(0),
            "decay": self.schedule.decay,
            "end_lr": self.lr_at(self.schedule.total_samples),
        }


def derive(config: TrainConfig, *, num_samples: int, world_size: int) -> Derived:
    """Solve the batch plan, the learning rate and the schedule for a training set and a number of ranks.

    Raises:
        ConfigError: with everything that cannot be solved.
    """
    report = Report()
    total = num_samples if config.batch.total == "full" else config.batch.total
    if total > num_samples:
        report.errors.append(
            f"batch.total={total}: the training set has {num_samples} samples, and a step uses each at most once. "
            "Use at most that many, or batch.total=full."
        )

    if config.batch.reduction == "ordered" and config.batch.micro is None:
        report.errors.append(
            "batch.reduction=ordered: the order of the sum is that of the micro-batches, and these depend on the "
            "number of ranks. Pin them with batch.micro=SIZE."
        )
    report.errors += _exact_batch_norm_problems(config)

    def samples(text: str) -> int:
        return Duration.parse(text).samples(num_samples=num_samples, global_batch_size=total)

    plan = report.attempt("batch", lambda: _solve(config, total, world_size))
    peak = report.attempt("scaling", lambda: _peak_lr(config, total))
    length = samples(config.length)
    if length < total:
        report.errors.append(
            f"length={config.length}: {length} samples are less than one batch of {total}. Train longer."
        )
    report.errors += _settings_of_another_decay(config.schedule)
    schedule = None if peak is None else report.attempt("schedule", lambda: _schedule(config, peak, length, samples))
    report.errors += _profile_problems(config, length // total)
    evaluate_every = report.attempt("", lambda: _interval("evaluation", config.observers.evaluation.every, samples))
    checkpoint_every = report.attempt("", lambda: _interval("checkpoint", config.observers.checkpoint.every, samples))
    report.raise_if_any()
    assert plan is not None
    assert peak is not None
    assert schedule is not None
    return Derived(plan, peak, schedule, num_samples, length // total, evaluate_every, checkpoint_every)


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
    return [
        f"batch_norm=exact: does not go with {name}: {reason}. Choose one of them."
        for name, (is_set, reason) in others.items()
        if is_set
    ]


def _solve(config: TrainConfig, total: int, world_size: int) -> BatchPlan:
    if config.batch.micro is not None:
        return BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=config.batch.micro)
    return BatchPlan.solve(global_batch_size=total, world_size=world_size, max_micro_batch_size=config.batch.max_micro)


def _peak_lr(config: TrainConfig, total: int) -> ScaledValue:
    scaling = config.scaling
    return scale_lr(
        scaling.base_lr, base_batch_size=scaling.base_batch_size, global_batch_size=total, rule=scaling.rule
    )


def _schedule(config: TrainConfig, peak: ScaledValue, length: int, samples: Callable[[str], int]) -> Schedule:
    schedule = config.schedule
    # With a peak at or below the base rate there is nothing to warm up to: the factor stays 1.
    base_share = min(config.scaling.base_lr / peak.value, 1.0)
    given = {
        name: value
        for name, decays in _DECAYS_WITH.items()
        if schedule.decay in decays and (value := getattr(schedule, name)) is not None
    }
    if "milestones" in given:
        given["step_samples"] = tuple(samples(text) for text in given.pop("milestones"))
    if "gamma" in given:
        given["step_gamma"] = given.pop("gamma")
    return Schedule(
        total_samples=max(length, 1),
        warmup_samples=samples(schedule.warmup),
        warmup_start_factor=base_share if schedule.warmup_from == "base_lr" else 0.0,
        decay=schedule.decay,
        **given,
    )


# Settings of a schedule that only some decays have.
_DECAYS_WITH = {
    "end_factor": ("linear", "cosine", "polynomial"),
    "power": ("polynomial",),
    "milestones": ("step",),
    "gamma": ("step",),
}


def _settings_of_another_decay(schedule: ScheduleConfig) -> list[str]:
    return [
        f"schedule.{name}={value}: has no effect with schedule.decay={schedule.decay}, it belongs to "
        f"{', '.join(decays)}. Remove it, or choose the schedule with schedule=NAME."
        for name, decays in _DECAYS_WITH.items()
        if (value := getattr(schedule, name)) is not None and schedule.decay not in decays
    ]


def _profile_problems(config: TrainConfig, num_steps: int) -> list[str]:
    steps = config.observers.profile.steps
    if not steps or num_steps >= steps + PROFILE_WARMUP_STEPS:
        return []
    return [
        f"observers.profile.steps={steps}: the run has {num_steps} steps, and {PROFILE_WARMUP_STEPS} warm up. "
        "Train longer or record fewer."
    ]


def _interval(observer: str, text: str | None, samples: Callable[[str], int]) -> int | None:
    if text is None:
        return None
    interval = samples(text)
    if interval == 0:
        raise ConfigError([f"observers.{observer}.every={text}: an interval is above 0. Use null for only at the end."])
    return interval


def _span(sizes: Any) -> str:
    smallest, largest = min(sizes), max(sizes)
    return f"{largest}" if smallest == largest else f"{smallest} to {largest}"


def _shorten(sizes: list[int]) -> str:
    shown = [str(size) for size in sizes[:6]] + (["..."] if len(sizes) > 6 else [])
    return " + ".join(shown)

"""The runs that an attribution compares: each a plain config, each one change away from another.

| run | samples per step | steps | hyper-parameters |
|---|---|---|---|
| small | B | N / B | of batch B |
| less noise | k B | N / B | of batch B |
| fewer steps | B | N / (k B) | of batch k B: fewer, longer steps |
| both | k B | N / (k B) | of batch k B, or tuned |
| and the rule | k B | N / (k B) | of batch k B, if the run before is tuned |
| and unscaled | k B | N / (k B) | of batch B |

`Of a batch` means: as the rules of `scaling` give them there, with warmup and decay in the same share of the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from largebatch.batch.decays import InverseSqrt
from largebatch.batch.duration import Duration
from largebatch.diagnostics.gap.attribution import Changes, Order, passed
from largebatch.experiments.attribution.settings import AttributionConfig
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.config.token_units import in_samples
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.prepare import Prepared, prepare

NOISE, STEPS, RULE, UNSCALED = "less noise", "fewer steps", "rule instead of tuned", "unscaled hyper-parameters"
_LENGTHS = ("cooldown", "cycle", "timescale")  # of a schedule, besides its warmup and milestones


@dataclass(frozen=True)
class Corner:
    """A run of the comparison.

    Attributes:
        global_batch_size: samples per step.
        num_steps: its length.
        rule_batch_size: the batch whose hyper-parameters it has.
        is_tuned: whether `attribute.tuned` applies.
    """

    global_batch_size: int
    num_steps: int
    rule_batch_size: int
    is_tuned: bool = False

    @property
    def name(self) -> str:
        """Of its folder, without the seed."""
        of = f"h{self.rule_batch_size}" + "_tuned" * self.is_tuned
        return f"b{self.global_batch_size}_n{self.num_steps}_{of}"

    @property
    def num_samples(self) -> int:
        """That it consumes."""
        return self.global_batch_size * self.num_steps


@dataclass(frozen=True)
class Design:
    """All runs of an attribution.

    Attributes:
        small, large: of the two batches, as the config has them.
        corners: by the changes that lead from the small run to it.
        orders: of the changes.
        is_scaled: whether the hyper-parameters of the two batches differ; else there is nothing to leave unscaled.
    """

    small: Corner
    large: Corner
    corners: dict[Changes, Corner]
    orders: tuple[Order, ...]
    is_scaled: bool
    _natural: dict[int, Prepared]

    @property
    def runs(self) -> list[Corner]:
        """Each once, the cheapest first."""
        return sorted(set(self.corners.values()), key=lambda one: (one.num_samples, one.name))

    def config_of(self, corner: Corner, config: DictConfig, options: AttributionConfig, *, seed: int) -> DictConfig:
        """The config of a run."""
        config = OmegaConf.create(config)
        changes: dict[str, Any] = {
            "batch.total": corner.global_batch_size,
            "length": f"{corner.num_steps}steps",
            "scaling.as_batch": corner.rule_batch_size,
            "seed": seed,
            "run.name": f"{corner.name}_s{seed}",
            "observers.evaluation.every": None,  # at the end
            "observers.checkpoint.every": None,
        }
        changes |= _schedule_of(corner, self._natural[corner.rule_batch_size])
        changes |= (options.tuned or {}) if corner.is_tuned else {}
        with open_dict(config):
            for key, value in changes.items():
                OmegaConf.update(config, key, value)
        return config


def plan_design(config: DictConfig, options: AttributionConfig) -> Design:
    """Derive the runs from the config, whose batch is the large one, and check each of them.

    Raises:
        ConfigError: with all that is wrong.
    """
    natural = [prepare(_at_batch(config, size), os.environ) for size in (options.small, config.batch.total)]
    first, second = natural
    sizes = [one.numbers.plan.global_batch_size for one in (first, second)]
    _require_two_batches(sizes, second)
    counts = [one.numbers.num_steps for one in (first, second)]
    _require_fewer_steps(sizes, counts)
    is_scaled = _hyper_parameters(first.numbers) != _hyper_parameters(second.numbers)
    small, large = (Corner(*both) for both in zip(sizes, counts, sizes, strict=True))
    corners = _corners(small, large, is_tuned=bool(options.tuned), is_scaled=is_scaled)
    orders = _orders(options, corners)
    kept = {one: corners[one] for order in orders for one in passed(order)}
    design = Design(small, large, kept, orders, is_scaled, dict(zip(sizes, natural, strict=True)))
    _check_runs(design, config, options)
    return design


def _corners(small: Corner, large: Corner, *, is_tuned: bool, is_scaled: bool) -> dict[Changes, Corner]:
    batch, steps = large.global_batch_size, large.num_steps
    found: dict[Changes, Corner] = {
        frozenset(): small,
        frozenset({NOISE}): Corner(batch, small.num_steps, small.rule_batch_size),
        frozenset({STEPS}): Corner(small.global_batch_size, steps, batch, is_tuned),
        frozenset({NOISE, STEPS}): Corner(batch, steps, batch, is_tuned),
    }
    last = frozenset({NOISE, STEPS})
    if is_tuned:
        last = last | {RULE}
        found[last] = large
    if is_scaled:
        found[last | {UNSCALED}] = Corner(batch, steps, small.rule_batch_size)
    return found


def _orders(options: AttributionConfig, corners: dict[Changes, Corner]) -> tuple[Order, ...]:
    """Hyper-parameters are changed last: with few steps of a large batch there is something to scale."""
    after = [name for name in (RULE, UNSCALED) if any(name in changes for changes in corners)]
    orders = ((NOISE, STEPS, *after), (STEPS, NOISE, *after))
    return orders if options.orders == "both" else orders[:1]


def _at_batch(config: DictConfig, size: Any) -> DictConfig:
    config = OmegaConf.create(config)
    OmegaConf.update(config, "batch.total", size)
    return config


def _hyper_parameters(numbers: RunNumbers) -> tuple[Any, ...]:
    """What the rules give, and the share of the run that warms up, from which rate."""
    schedule = numbers.schedule
    peak = numbers.peak_lrs[0].value
    scaled = [(name, one.value) for values in numbers.scaled for name, one in values.items()]
    return peak, scaled, schedule.warmup_samples / schedule.total_samples, schedule.warmup_start_factor * peak


def _schedule_of(corner: Corner, natural: Prepared) -> dict[str, Any]:
    """Lengths of the schedule, in the same share of this run as in the run whose hyper-parameters it has."""
    numbers, schedule = natural.numbers, natural.config.schedule

    def stretched(samples: int) -> str:
        return f"{round(samples * corner.num_samples / (numbers.num_steps * corner.rule_batch_size))}samples"

    def samples(text: str) -> int:
        return Duration.parse(text).samples(
            num_samples=numbers.num_samples,
            global_batch_size=corner.rule_batch_size,
            tokens_per_sample=numbers.tokens_per_sample,
        )

    given = {key: text for key in _LENGTHS if (text := getattr(schedule, key)) is not None}
    found: dict[str, Any] = {f"schedule.{key}": stretched(samples(text)) for key, text in given.items()}
    found["schedule.warmup"] = stretched(numbers.schedule.warmup_samples)
    if schedule.milestones is not None:
        found["schedule.milestones"] = [stretched(samples(text)) for text in schedule.milestones]
    if isinstance(decay := numbers.schedule.decay, InverseSqrt):
        found["schedule.timescale"] = stretched(decay.samples)
    return found


def _require_two_batches(sizes: Sequence[int], large: Prepared) -> None:
    small, batch = sizes
    errors = []
    if small >= batch:
        errors.append(
            f"attribute.small={small}: is not below batch.total={batch}, whose loss is to be explained. Lower it."
        )
    if large.config.batch.ramp.is_used:
        errors.append("batch.ramp: a run whose batch changes has no one noise. Leave it out.")
    if (given := large.config.scaling.as_batch) is not None:
        errors.append(
            f"scaling.as_batch={given}: gives every batch the hyper-parameters of that one, and an attribution "
            "compares batches with their own. Leave it out."
        )
    if (resume := large.config.resume) not in ("none", "auto"):
        errors.append(
            f"resume={resume}: runs of an attribution start from the same initial weights. Leave it out: the same "
            "command goes on with runs that were stopped."
        )
    if large.config.cooldown.is_used:
        errors.append("cooldown.checkpoint: runs of an attribution start from the same initial weights. Leave it out.")
    if Duration.parse(large.config.length).unit == "steps":
        errors.append(
            f"length={large.config.length}: both batches are compared after equal samples. Give the length in epochs, "
            "samples or tokens."
        )
    if errors:
        raise ConfigError(errors)


def _require_fewer_steps(sizes: Sequence[int], counts: Sequence[int]) -> None:
    if counts[0] == counts[1]:
        raise ConfigError(
            [f"length: batch {sizes[0]} and batch {sizes[1]} both take {counts[0]} steps. Train longer, or choose "
             "batches that are further apart."]
        )  # fmt: skip


def _check_runs(design: Design, config: DictConfig, options: AttributionConfig) -> None:
    """Derive the numbers of each run; one with tuned values is tried, too: its optimizer takes them or not."""
    errors: list[str] = []
    for corner in design.runs:
        made = design.config_of(corner, config, options, seed=0)
        natural = design._natural[corner.rule_batch_size].numbers
        try:
            if corner.is_tuned:
                prepare(made, os.environ)
            else:
                counted = in_samples(parse_config(made), natural.tokens_per_sample or 1, errors)
                derive(counted, num_samples=natural.num_samples, world_size=natural.plan.world_size)
        except ConfigError as error:
            errors += error.errors
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))

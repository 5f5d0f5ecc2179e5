"""`largebatch measure critical-batch`: how large the batch may be now, by short branches from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from largebatch.batch.order import SampleOrder
from largebatch.diagnostics.critical_batch.branches import LEAST_SIZES
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.measure.branch_design import Branch, Design, shares_of
from largebatch.experiments.measure.branched_runs import run_branches
from largebatch.experiments.measure.critical_batch_result import result_of
from largebatch.experiments.measure.run_state import find_run_checkpoint
from largebatch.experiments.measure.weights import Measurement, NotMeasurableError, Weights
from largebatch.gradient.choices import Ability
from largebatch.records.result import Result
from largebatch.run.config.combinations import refusals
from largebatch.run.config.findings import Findings
from largebatch.run.config.measure import CriticalBatchConfig, MeasureConfig
from largebatch.run.config.reading import ConfigError
from largebatch.run.derive import peak_lr, solve_plan
from largebatch.run.growth import as_decided
from largebatch.run.prepare import Prepared
from largebatch.run.sample_order import sample_order

_KEY = "measure.critical_batch"
_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check the settings; returns the measurement.

    Raises:
        NotMeasurableError: if the loss couples samples, or a branch would leave a trace in the next one.
        ConfigError: with every problem of the branches; of a run whose batch grows, as soon as the place is known.
    """
    _require_branches(prepared)
    if len(prepared.numbers.ramp.plans) == 1:
        _design(prepared, options, start=0)
    if options.checkpoint is None:
        _require_samples(prepared, _design(prepared, options, start=0), start=0)

    def measure(weights: Weights) -> Result | None:
        checkpoint = find_run_checkpoint(prepared, weights)
        start = 0 if checkpoint is None else int(checkpoint.values["samples_seen"])
        here = replace(prepared, numbers=as_decided(prepared.numbers, checkpoint))
        design = _design(here, options, start=start)
        _require_samples(here, design, start=start)
        branches, factors = run_branches(here, weights, design, checkpoint, say=partial(print, flush=True))
        if not weights.runtime.is_main:
            return None
        return result_of(here, options, weights, design, branches, factors, start=start)

    return measure


def _require_branches(prepared: Prepared) -> None:
    what = "measure critical-batch"
    problems = list(refusals(what, Ability.OWN_LOSSES, prepared.config, prepared.loss))
    if prepared.config.precision.gradient_compression == "powersgd":
        problems.append(
            f"{what}: does not go with precision.gradient_compression=powersgd: what it carries over from step to step "
            "would go from one branch into the next. Use precision.gradient_compression=null."
        )
    if prepared.config.scaling.as_batch is not None:
        problems.append(
            f"{what}: scaling.as_batch={prepared.config.scaling.as_batch} gives every batch the values of that "
            "one, and branches compare batches with their own. Leave it out, with resume_allow=[scaling.as_batch] "
            "for a checkpoint: the branches of each batch then have the values of that batch."
        )
    if problems:
        raise NotMeasurableError(problems)


def _design(prepared: Prepared, options: MeasureConfig, *, start: int) -> Design:
    """The branches from a place: of the batch that the run has there, at the rate that it has there.

    Raises:
        ConfigError: with every problem.
    """
    chosen, findings = options.critical_batch, Findings()
    if len(set(chosen.rate_factors)) < len(chosen.rate_factors):
        findings.errors.append(f"{_KEY}.rate_factors={chosen.rate_factors}: one is listed twice. Name each once.")
    branches = _branches(prepared, chosen, start, findings)
    subset = _evaluated(prepared, options, findings)
    findings.raise_if_any()
    assert subset is not None
    numbers = prepared.numbers
    stage = numbers.ramp.stage_at(start)  # the place of its plan may be another one: two stages may have equal batches
    sizes = [rates[0].plan.global_batch_size for rates in branches]
    whole = math.lcm(2 * sizes[0], *sizes)
    return Design(
        branches=branches,
        rate_factors=tuple(sorted(chosen.rate_factors)),
        num_samples=-(-chosen.steps * sizes[-1] // whole) * whole,
        num_windows=chosen.windows,
        num_pilots=_num_pilots(options),
        shares=shares_of(subset, chosen.windows + _num_pilots(options)),
        lr_at=lambda seen: numbers.peak_lrs[stage].value * numbers.schedule(seen),
    )


def _rates(prepared: Prepared, start: int, size: int, factors: Sequence[float]) -> list[Branch]:
    """Branches of one batch size from a place of the run; `factors` are of its rule's rate.

    Raises:
        ValueError: if the batch cannot be split, or something that follows it has no value there.
    """
    config, numbers, groups = prepared.config, prepared.numbers, prepared.scaled_groups
    base, following = numbers.ramp.at(start), numbers.following
    plan = solve_plan(config, size, base.world_size)

    def rate(total: int) -> float:
        peak = peak_lr(config, total)
        return peak.value if following is None else following.with_momentum(peak, total).value

    scales = [rate(size) / rate(base.global_batch_size) * factor for factor in factors]
    if following is None or groups is None:
        return [Branch(plan, scale) for scale in scales]
    own = rate(base.global_batch_size)
    return [Branch(plan, scale, groups.left_for(following.stage(size, own * scale), start)) for scale in scales]


def _branches(prepared: Prepared, chosen: CriticalBatchConfig, start: int, findings: Findings) -> list[list[Branch]]:
    """By batch size, ascending, and rate; with errors as findings."""
    key, factors, total = f"{_KEY}.factors", chosen.factors, prepared.numbers.ramp.at(start).global_batch_size
    num_samples = prepared.numbers.num_samples
    asked = sorted(set(factors or _FACTORS))
    if factors is not None and len(asked) < len(factors):
        findings.errors.append(f"{key}={factors}: one is listed twice. Name each once.")
    branches = list[list[Branch]]()
    for factor in asked:
        size = round(factor * total)
        own = Findings()
        if not math.isclose(size, factor * total) or size < 1:
            own.errors.append(f"{key}: {factor:g} times the batch of {total} is no whole number of samples.")
        elif size > num_samples:
            own.errors.append(
                f"{key}: {factor:g} times the batch of {total} is {size}, and the training set has {num_samples} "
                "samples, which a step uses at most once. Leave it out."
            )
        else:
            found = own.attempt(key, partial(_rates, prepared, start, size, sorted(chosen.rate_factors)))
            branches += [] if found is None else [found]
        findings.errors += own.errors if factors is not None else []
    if len(branches) < LEAST_SIZES and not findings.errors:
        sizes = [rates[0].plan.global_batch_size for rates in branches]
        findings.errors.append(
            f"{key}={factors}: of the batch {total} there are branches of {sizes}, and a curve needs {LEAST_SIZES}. "
            "Name more factors, or start from another batch."
        )
    return branches


def _evaluated(prepared: Prepared, options: MeasureConfig, findings: Findings) -> FixedSubset | None:
    chosen = options.critical_batch
    name = chosen.evaluate_on
    dataset = prepared.validation if name == "validation" else prepared.train_plain
    count = chosen.evaluation_samples or min(len(prepared.validation), len(dataset))
    windows = chosen.windows + _num_pilots(options)
    if not windows <= count <= len(dataset):
        findings.errors.append(
            f"{_KEY}.evaluation_samples={chosen.evaluation_samples}: {count} of the {len(dataset)} {name} samples for "
            f"{windows} windows. Each window needs one of its own: use {windows} to {len(dataset)}, or other "
            f"{_KEY}.windows."
        )
        return None
    config = prepared.config
    return FixedSubset.random(
        dataset, count, seed=config.seed, micro_batch_size=options.micro, num_workers=config.data.num_workers
    )


def _num_pilots(options: MeasureConfig) -> int:
    chosen = options.critical_batch
    return chosen.pilot_windows if len(chosen.rate_factors) > 1 else 0


def _require_samples(prepared: Prepared, design: Design, *, start: int) -> None:
    """Refuse branches beyond the end of the schedule, and windows that repeat each other.

    Raises:
        ConfigError: with the reason.
    """
    config, total = prepared.config, prepared.numbers.schedule.total_samples
    left = total - start
    if config.schedule.decay_name != "constant" and left < design.num_samples:
        raise ConfigError(
            [f"{_KEY}.steps: a branch takes {design.num_samples:,} samples, and the schedule of the run has {left:,} "
             f"left after {start:,}. Take an earlier measure.checkpoint, smaller factors or fewer steps, or a longer "
             "run (length=..., with 'resume_allow=[length]' for a checkpoint)."]
        )  # fmt: skip
    order = sample_order(config, prepared.train)
    if isinstance(order, SampleOrder):
        return
    first = start + design.num_samples * np.arange(design.num_pilots + design.num_windows)
    windows = {order.ids_at(one + np.arange(design.batch_sizes[-1])).tobytes() for one in first}
    if len(windows) < len(first):
        raise ConfigError(
            [f"data.order: windows of {design.num_samples:,} samples repeat each other in it, so that their spread "
             f"tells nothing. Use data.order=null, or {_KEY}.steps and windows that stay within the set."]
        )  # fmt: skip

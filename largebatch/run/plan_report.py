"""The plan of a run: as rows of a table, and as plain values for records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from largebatch.batch.decays import Cooldown
from largebatch.batch.noise_growth import GrowthDecision
from largebatch.batch.plan import BatchPlan
from largebatch.batch.scaling import ScaledValue
from largebatch.run.checks.memory import state_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers
from largebatch.run.growth_report import candidate_rows, growth_record
from largebatch.run.loading import prefetch_of
from largebatch.run.method_rows import PlanRow, method_record
from largebatch.run.prepare import Prepared
from largebatch.run.ramp_rows import explained, growth_rows, ramp_rows, scaled_rows, trunk_rows
from largebatch.run.stage_rates import IN_PLACE_OF_DECAY
from largebatch.run.token_counts import shown_samples


def plan_rows(numbers: RunNumbers, optimizer: Optimizer) -> list[PlanRow]:
    """Rows (quantity, value, source)."""
    plan, schedule, tokens = numbers.plan, numbers.schedule, numbers.tokens_per_sample
    first = [part.size for part in plan.micro_batches(0)]
    shares = [plan.rank_batch_size(rank) for rank in range(plan.world_size)]
    unused = schedule.total_samples - numbers.num_consumed
    has_ramp = len(numbers.ramp.plans) > 1
    consumed = shown_samples(schedule.total_samples, tokens) + ("" if has_ramp else f" // {plan.global_batch_size:,}")
    return [
        ("global batch", shown_samples(plan.global_batch_size, tokens), "batch.total"),
        ("ranks", f"{plan.world_size}", f"each {_span(shares)} samples per step"),
        (
            "micro-batches",
            f"{len(plan.micro_batch_sizes)} of {_span(plan.micro_batch_sizes)}",
            f"rank 0: {_shorten(first)}" + ("; one gradient all-reduce per step" if plan.world_size > 1 else ""),
        ),
        *ramp_rows(numbers),
        *candidate_rows(numbers),
        ("training set", shown_samples(numbers.num_samples, tokens), _steps_per_epoch(numbers)),
        (
            "steps",
            f"{numbers.num_steps:,}" if numbers.growth is None else f"at most {numbers.num_steps:,}",
            consumed
            + {0: "", 1: "; the last sample does not fill a batch"}.get(
                unused, f"; the last {unused:,} samples do not fill a batch"
            ),
        ),
        *growth_rows(numbers),
        ("peak LR", f"{numbers.peak_lrs[0].value:.6g}", explained(numbers.peak_lrs[0])),
        *scaled_rows(numbers, 0),
        *_factor_rows(optimizer),
        *trunk_rows(numbers),
        ("warmup", shown_samples(schedule.warmup_samples, tokens), _warmup_explained(numbers)),
        ("decay", _decay(numbers), f"to {numbers.lr_at(schedule.total_samples):.6g}"),
    ]


def checkpoint_row(config: TrainConfig, module: nn.Module) -> PlanRow:
    """Number of checkpoints, size of their weights, and when they are saved.

    The optimizer's state is not measured: its first step imports torch's compiler, which takes longer than the plan.
    """
    options = config.observers.checkpoint
    weights = sum(one.nbytes for one in state_of(module).values() if isinstance(one, torch.Tensor))
    kept = options.keep + (options.best_by is not None)
    when = [] if options.every_minutes is None else [f"every {options.every_minutes:g} min"]
    when += [] if options.every is None else [f"every {options.every}"]
    when.append("at the end and when stopped")
    return (
        "checkpoints",
        f"{kept} of {weights / 1e6:,.3g} MB",
        f"plus the optimizer's state; {', '.join(when)}; one more while it is written",
    )


def reduction_rows(config: TrainConfig, world_size: int) -> list[PlanRow]:
    """How the gradients of ranks become one, and how exact that is; none on one rank, where nothing is sent."""
    if world_size == 1:
        return []
    record = reduction_record(config)
    value = record["reduction" if record["compression"] == "none" else "compression"]
    size = f"at most {record['bucket_mb']:g} MiB at once (precision.bucket_mb)"
    return [("gradients of ranks", value, f"{record['equals']}; {size}")]


def reduction_record(config: TrainConfig) -> dict[str, Any]:
    """The same as plain values."""
    compression = config.precision.gradient_compression
    if compression == "powersgd":
        equals = "inexact: their mean as thin matrices, with errors of earlier steps"
    elif compression != "none":
        equals = f"inexact: each is rounded to {compression}"
    elif config.batch.reduction == "ordered":
        equals = "the same bits on any number of ranks"
    else:
        equals = "their sum; last digits depend on the number of ranks, and on this size beyond 2 of them"
    bucket_mb = config.precision.bucket_mb
    return {"reduction": config.batch.reduction, "compression": compression, "bucket_mb": bucket_mb, "equals": equals}


def _factor_rows(optimizer: Optimizer) -> list[PlanRow]:
    """Factors of the learning rate per group, if they are not all 1."""
    counts = lr_factor_counts(optimizer)
    if list(counts) in ([], [1.0]):
        return []
    value = ", ".join(f"{count} x {factor:.4g}" for factor, count in counts.items())
    return [("rates of tensors", value, "times the rate of the run: parameters, or the optimizer's own groups")]


def lr_factor_counts(optimizer: Optimizer) -> dict[float, int]:
    """Number of tensors by factor of their learning rate, largest factor first."""
    counts: Counter[float] = Counter()
    for group in optimizer.param_groups:
        counts[group.get("lr_factor", 1.0)] += len(group["params"])
    return dict(sorted(counts.items(), reverse=True))


def _decay(numbers: RunNumbers) -> str:
    if numbers.trunk is not None:
        return numbers.schedule.decay_name
    if numbers.peak_lrs[-1].rule != IN_PLACE_OF_DECAY:
        return numbers.schedule.decay_name
    return "by the batch" if numbers.schedule.decay == "constant" else f"{numbers.schedule.decay_name}, by the batch"


def _steps_per_epoch(numbers: RunNumbers) -> str:
    steps = numbers.num_samples / numbers.plan.global_batch_size
    return f"{steps:.4g} steps per epoch" + (" at first" if len(numbers.ramp.plans) > 1 else "")


def _warmup_explained(numbers: RunNumbers) -> str:
    if not numbers.schedule.warmup_samples:
        return "none"
    how = "constant at" if numbers.schedule.warmup_kind == "constant" else "from"
    return f"{how} {numbers.lr_at(0):.6g}"


def lr_rows(numbers: RunNumbers) -> list[PlanRow]:
    """Rows (samples seen, learning rate of the step that starts there), at the turning points of the schedule."""
    stages = numbers.ramp.stages(numbers.schedule.total_samples)
    position, plan, count = stages[-1]
    last = position + (count - 1) * plan.global_batch_size
    places = {0, numbers.schedule.warmup_samples, numbers.schedule.total_samples // 2, last}
    places |= {start for start, _, _ in stages}
    if isinstance(cooldown := numbers.schedule.decay, Cooldown):
        places.add(numbers.schedule.total_samples - cooldown.samples)
    if numbers.trunk is not None:
        places.add(numbers.trunk.samples_seen)
    return [(f"{samples:,} samples", f"{numbers.lr_at(samples):.6g}", "") for samples in sorted(places)]


def plan_record(prepared: Prepared, growth: Sequence[GrowthDecision] = ()) -> dict[str, Any]:
    """The plan of a run, its decisions and notes as plain values; `growth`: the decisions about its batch so far."""
    numbers, decisions = prepared.numbers, prepared.decisions
    plan, schedule = numbers.plan, numbers.schedule
    return {
        **_batch_record(plan),
        "world_size": plan.world_size,
        "rank_batch_sizes": [plan.rank_batch_size(rank) for rank in range(plan.world_size)],
        "num_samples": numbers.num_samples,
        "tokens_per_sample": numbers.tokens_per_sample,
        "num_steps": numbers.num_steps,
        **({} if (constant := numbers.steps_without_growth) is None else {"steps_without_growth": constant}),
        "steps_per_epoch": numbers.num_samples / plan.global_batch_size,
        "total_samples": schedule.total_samples,
        "peak_lr": _lr_record(numbers.peak_lrs[0]),
        "scaled": _scaled_record(numbers, 0),
        "ramp": [
            {
                "from_samples": position,
                "num_steps": count,
                **_batch_record(later),
                "peak_lr": _lr_record(numbers.peak_lrs[numbers.ramp.stage_at(position)]),
                "scaled": _scaled_record(numbers, numbers.ramp.stage_at(position)),
            }
            for position, later, count in numbers.ramp.stages(schedule.total_samples)[1:]
        ],
        **growth_record(numbers, growth),
        "warmup_samples": schedule.warmup_samples,
        "warmup_kind": schedule.warmup_kind,
        "warmup_start_lr": numbers.lr_at(0),
        "decay": schedule.decay_name,
        **({} if numbers.trunk is None else {"trunk": numbers.trunk.record()}),
        "end_lr": numbers.lr_at(schedule.total_samples),
        "lr_factors": [
            {"factor": factor, "tensors": count} for factor, count in lr_factor_counts(prepared.optimizer).items()
        ],
        "precision": decisions.record(),
        "gradients": reduction_record(prepared.config),
        "methods": method_record(prepared),
        "notes": list(prepared.notes),
        "prefetch": vars(prefetch_of(prepared.config.data, prepared.train, feeds_gpu=decisions.device.is_gpu)),
    }


def _batch_record(plan: BatchPlan) -> dict[str, Any]:
    return {
        "global_batch_size": plan.global_batch_size,
        "grad_accum_steps": plan.grad_accum_steps,
        "max_micro_batch_size": plan.max_micro_batch_size,
    }


def _scaled_record(numbers: RunNumbers, stage: int) -> dict[str, Any]:
    return {name: _lr_record(one) for name, one in (numbers.scaled[stage] if numbers.scaled else {}).items()}


def _lr_record(value: ScaledValue) -> dict[str, Any]:
    return {"value": value.value, "rule": value.rule, "formula": value.formula, "inputs": value.inputs}


def _span(sizes: Sequence[int]) -> str:
    smallest, largest = min(sizes), max(sizes)
    return f"{largest}" if smallest == largest else f"{smallest} to {largest}"


def _shorten(sizes: list[int]) -> str:
    shown = [str(size) for size in sizes[:6]] + (["..."] if len(sizes) > 6 else [])
    return " + ".join(shown)

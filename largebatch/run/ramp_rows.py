"""The stages of a ramp, what follows the batch, what growth saves, and the place of a cooldown, as rows of the plan."""

from __future__ import annotations

from largebatch.batch.cooldown import CooledTrunk
from largebatch.batch.scaling import ScaledValue
from largebatch.run.derive import RunNumbers
from largebatch.run.method_rows import PlanRow
from largebatch.run.stage_rates import IN_PLACE_OF_DECAY
from largebatch.run.token_counts import shown_samples

_SHOWN = {"weight_decay": "weight decay", "clip_norm": "clip norm", "ema": "kept by average"}


def explained(value: ScaledValue) -> str:
    """The rule of a derived number, its formula and its inputs."""
    return f"{value.rule}: {value.explanation}"


def ramp_rows(numbers: RunNumbers) -> list[PlanRow]:
    """The later stages of a ramp."""
    rows = []
    for position, plan, count in numbers.ramp.stages(numbers.schedule.total_samples)[1:]:
        peak = numbers.peak_lrs[numbers.ramp.stage_at(position)]
        rows.append(
            (
                f"from {position:,} samples",
                shown_samples(plan.global_batch_size, numbers.tokens_per_sample),
                f"{count:,} steps, each {len(plan.micro_batch_sizes)} micro-batch"
                f"{'es' if len(plan.micro_batch_sizes) > 1 else ''}; {_of_stage(numbers, position, peak)}",
            )
        )
        rows += scaled_rows(numbers, numbers.ramp.stage_at(position), when=f", from {position:,}")
    return rows


def scaled_rows(numbers: RunNumbers, stage: int, when: str = "") -> list[PlanRow]:
    """What follows the batch of a stage besides the rate."""
    values = numbers.scaled[stage] if numbers.scaled else {}
    return [(f"{_SHOWN.get(name, name)}{when}", f"{one.value:.6g}", explained(one)) for name, one in values.items()]


def _of_stage(numbers: RunNumbers, position: int, peak: ScaledValue) -> str:
    if peak.rule == IN_PLACE_OF_DECAY and numbers.schedule.decay != "constant":
        factor = numbers.schedule(position)
        return f"LR {peak.value * factor:.6g} at its start, {explained(peak)}, times the decay {factor:.6g}"
    return f"peak LR {peak.value:.6g}, {explained(peak)}"


def growth_rows(numbers: RunNumbers) -> list[PlanRow]:
    """The steps that a batch saves that grows in place of a decay."""
    if (constant := numbers.steps_without_growth) is None:
        return []
    saved = constant - numbers.num_steps
    why = f"of {constant:,} at a constant batch of {numbers.plan.global_batch_size:,}, which would have this decay"
    return [("steps saved", f"{saved:,}, {saved / constant:.1%}", why)]


def trunk_rows(numbers: RunNumbers) -> list[PlanRow]:
    """Where a cooldown begins and how it goes down."""
    trunk, decay = numbers.trunk, numbers.schedule.decay
    if trunk is None or not isinstance(decay, CooledTrunk):
        return []
    lr, last = numbers.lr_at(trunk.samples_seen), numbers.ramp.num_steps(numbers.schedule.total_samples) - trunk.step
    what = f"{shown_samples(decay.cooldown.samples, numbers.tokens_per_sample)}, {decay.cooldown.shape}"
    where = f"step {trunk.step:,}, {trunk.samples_seen:,} samples"
    return [("cooldown", what, f"{last:,} steps from LR {lr:.6g} of {trunk.checkpoint} ({where})")]

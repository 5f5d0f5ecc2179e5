"""The peak learning rate of each stage of a batch that grows."""

from __future__ import annotations

from largebatch.batch.scaling import ScaledValue, scale_lr
from largebatch.run.config.schema import TrainConfig
from largebatch.run.ramp_stages import Stages

IN_PLACE_OF_DECAY = "in_place_of_decay"  # rule of a rate that stays because the batch grows
# The factor of the rate that the grown batch replaces, by scaling rule.
_GROWTH = {
    "linear": "global_batch_size / first_batch_size",
    "sqrt": "sqrt(global_batch_size / first_batch_size)",
}


def rule_totals(config: TrainConfig, totals: tuple[int, ...]) -> tuple[int, ...]:
    """The batch of each stage, as the scaling rules see it."""
    return totals if config.scaling.as_batch is None else (config.scaling.as_batch,)


def stage_rates(config: TrainConfig, stages: Stages) -> tuple[ScaledValue, ...]:
    """Rate of each stage: scaled to its batch, or the rest of the decay that the batch does not replace."""
    scaling = config.scaling
    if scaling.as_batch is not None and len(stages.totals) > 1:
        raise ValueError(
            f"scaling.as_batch={scaling.as_batch}: names one batch for all rules, and the batch changes over the run. "
            "Leave out one of both."
        )
    first, *others = (
        scale_lr(scaling.base_lr, base_batch_size=scaling.base_batch_size, global_batch_size=total, rule=scaling.rule)
        for total in rule_totals(config, stages.totals)
    )
    if stages.decay is None:
        return (first, *others)
    return (first, *(_left_of_decay(config, first, stages, number) for number in range(1, len(stages.totals))))


def _left_of_decay(config: TrainConfig, first: ScaledValue, stages: Stages, number: int) -> ScaledValue:
    assert stages.decay is not None
    is_step = config.schedule.decay == "step"
    of_decay = {"gamma": config.schedule.gamma, "milestones": number} if is_step else {}
    sizes = {"global_batch_size": stages.totals[number], "first_batch_size": stages.totals[0]}
    formula = f"first_peak_lr * {'gamma^milestones * ' if is_step else ''}{_GROWTH[config.scaling.rule]}"
    inputs = {"first_peak_lr": first.value, **of_decay, **sizes}
    return ScaledValue(first.value * stages.decay[number], IN_PLACE_OF_DECAY, formula, inputs)

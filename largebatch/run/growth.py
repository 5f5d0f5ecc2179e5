"""The batch of a run that grows by its own noise scale: how the decisions get into its numbers and records."""

from __future__ import annotations

from dataclasses import replace

from largebatch.batch.noise_growth import GrowthDecision
from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.records.checkpoint import Checkpoint
from largebatch.records.run_folder import RunFolder
from largebatch.run.derive import RunNumbers
from largebatch.run.plan_report import plan_record
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run
from largebatch.training.observers import GrowthObserver, NoiseScaleObserver, RowLog
from largebatch.training.observers.growth import decided, decisions_in


def growth_observer(
    prepared: Prepared, folder: RunFolder, rows: RowLog, noise: NoiseScaleObserver | None
) -> GrowthObserver | None:
    """Lets the batch grow; None in a run whose batch does not grow by what it measures.

    plan.json is written anew with each decision: a run that is killed leaves a plan that fits its rows.
    """
    numbers = prepared.numbers
    if numbers.growth is None:
        return None
    assert noise is not None, "the config check requires the measurement"

    def follow(run: Run, ramp: BatchRamp) -> None:
        now = replace(numbers, ramp=ramp)  # everything that depends on the stage asks this ramp
        run.steps.follow(ramp, now.lr_at, now.num_steps)
        if run.scaled is not None:
            run.scaled = run.scaled.with_stages(ramp.stage_at)

    def keep(ramp: BatchRamp, decisions: list[GrowthDecision]) -> None:
        folder.write_plan(plan_record(replace(prepared, numbers=replace(numbers, ramp=ramp)), decisions))

    return GrowthObserver(rows, numbers.growth, noise, follow, keep)


def as_decided(numbers: RunNumbers, checkpoint: Checkpoint | None) -> RunNumbers:
    """The numbers of a run that goes on from a checkpoint, with the decisions that are in it.

    Raises:
        ValueError: if they are not decisions of this run.
    """
    if numbers.growth is None or checkpoint is None:
        return numbers
    return replace(numbers, ramp=decided(numbers.ramp, decisions_of(checkpoint)))


def decisions_of(checkpoint: Checkpoint | None) -> list[GrowthDecision]:
    """The decisions in a checkpoint; none in that of a run that made none."""
    return [] if checkpoint is None else decisions_in(checkpoint.values)


def go_on_as_decided(prepared: Prepared, checkpoint: Checkpoint | None, loader: MicroBatchLoader) -> Prepared:
    """The run with the decisions of the checkpoint that it goes on from, in its numbers and in its loader."""
    numbers = as_decided(prepared.numbers, checkpoint)
    if numbers is prepared.numbers:
        return prepared
    loader.replan(numbers.ramp)
    groups = prepared.scaled_groups
    scaled = None if groups is None else groups.with_stages(numbers.ramp.stage_at)
    return replace(prepared, numbers=numbers, scaled_groups=scaled)

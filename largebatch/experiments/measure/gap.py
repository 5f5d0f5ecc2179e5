"""`largebatch measure gap`: the parts of the gap between printed training loss and validation loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data import Augmentation
from largebatch.diagnostics import GapParts, Interval, Part, decompose_gap
from largebatch.diagnostics.gap.conditions.measurement import Conditions, measure_conditions
from largebatch.diagnostics.gap.conditions.passes import GapData, GapSettings
from largebatch.experiments.measure.weights import Measurement, NotMeasurableError, Weights, fixed_subset
from largebatch.gradient.choices import Ability
from largebatch.records.figures.gap_figures import gap_parts_figures
from largebatch.records.result import Result, Table
from largebatch.run.config.combinations import refusals
from largebatch.run.config.measure import MeasureConfig
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared

MEANINGS = {
    "label smoothing": "the training loss without it",
    "augmentation": "training samples without it; negative where it makes them harder",
    "train mode": "eval mode with fresh statistics, against dropout and batch norm over micro-batches of {ghost}",
    "stale statistics": "batch norm's running statistics, against fresh ones at these weights",
    "label noise": "the same samples with their true labels; positive where the model memorised wrong ones",
    "generalization": "validation samples against training samples, all else equal",
}
# For sets that augment by themselves: a plain set would separate these parts.
_NOT_TOLD_APART = {
    "augmentation": "data.augment alone; augmentation inside a set is not separated: name data.train_plain",
    "generalization": "validation samples against training samples, and augmentation inside the sets",
}
_MIXED = {"augmentation": "training samples without it; mixup and CutMix are left out on both sides"}
# Where training samples are as an evaluation during training sees them: with the labels that were trained on.
_EVALUATED = "stale statistics"


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check the settings; returns the measurement.

    Raises:
        ConfigError: if there are too few or too many samples, or the loss couples samples.
    """
    data = _data(prepared, options)
    ghost = options.gap.ghost or ghost_size(prepared)
    seed = prepared.config.seed
    settings = GapSettings(seed=seed, ghost=ghost, draws=options.gap.draws, micro_batch_size=options.micro)
    losses = getattr(prepared.loss, "of_one_label", prepared.loss), prepared.measured_loss

    def measure(weights: Weights) -> Result | None:
        conditions = measure_conditions(weights.module, losses, data, weights.runtime, settings)
        if not weights.runtime.is_main:
            return None
        found = _decompose(conditions, options, seed)
        return _result(prepared, options, weights, found, ghost, len(data.validation_ids))

    return measure


def _data(prepared: Prepared, options: MeasureConfig) -> GapData:
    if problems := refusals("measure gap", Ability.OWN_LOSSES, prepared.config, prepared.loss):
        raise NotMeasurableError(problems)
    ids = fixed_subset(prepared, options).ids
    count = min(len(ids), len(prepared.validation))  # as many of both, so that both errors are alike
    if count < 2:
        raise ConfigError(
            [f"{len(ids)} training and {len(prepared.validation)} validation samples: the spread of a mean needs 2 of "
             "both. Raise measure.samples, or use a larger validation set."]
        )  # fmt: skip
    order = SampleOrder(len(prepared.validation), stream_key(prepared.config.seed, "evaluated subset"))
    return GapData(
        train=None if prepared.train is prepared.train_plain else prepared.train,
        plain=prepared.train_plain,
        validation=prepared.validation,
        ids=ids,
        validation_ids=order.ids(0, count),
        augment=_unmixed(prepared),
        clean=getattr(prepared.train_plain, "clean", None) if prepared.config.data.label_noise else None,
        num_workers=prepared.config.data.num_workers,
    )


def _unmixed(prepared: Prepared) -> Augmentation | None:
    """The augmentation of a sample by itself: a mixed one has no label of its own, and no part of the gap."""
    augment = prepared.augment
    return dataclasses.replace(augment, mixing=None) if augment is not None and augment.changes_images else None


def ghost_size(prepared: Prepared) -> int:
    """Samples that share the statistics of batch norm in training on one rank, at the end of the run."""
    config, total = prepared.config, prepared.numbers.ramp.plans[-1].global_batch_size
    if config.batch_norm == "exact":
        return total
    return min(config.batch.micro or config.batch.max_micro or total, total)


def _decompose(conditions: Conditions, options: MeasureConfig, seed: int) -> GapParts:
    try:
        return decompose_gap(
            conditions.printed,
            conditions.changes,
            conditions.validation,
            num_resamples=options.gap.resamples,
            seed=stream_key(seed, "gap bootstrap"),
            evaluated=_EVALUATED,
        )
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def _result(
    prepared: Prepared,
    options: MeasureConfig,
    weights: Weights,
    found: GapParts,
    ghost: int,
    num_validation: int,
) -> Result:
    count = options.samples or len(prepared.train_plain)
    settings = {"ghost": ghost, "settings": options.model_dump(), "is_augmented": prepared.gap_is_augmented}
    title = f"gap of {weights.source}: {count} training, {num_validation} validation samples, {options.precision}"
    headers = ("part", "loss", "95 % interval", "accuracy", "95 % interval", "meaning")
    is_mixed = prepared.config.data.augment.mixes
    rows = _rows(found, ghost, options.gap.draws, is_augmented=prepared.gap_is_augmented, is_mixed=is_mixed)
    alike = "one side augmented by its set" if prepared.gap_is_augmented else "both sides evaluated alike"
    return Result(
        title="Generalization gap",
        sentences=[
            _of_gap("The generalization gap of the loss", found.generalization_gap, alike),
            _of_gap("The naive gap", found.naive, "validation against the training loss as it is printed"),
        ],
        tables=[Table(title, headers, rows)],
        figures=gap_parts_figures(found, unit=prepared.loss.unit),
        numbers=dataclasses.asdict(found) | settings,
        picture="gap_parts.png",
        heading=f"{prepared.config.shown_name}, {weights.source}",
    )


def _of_gap(name: str, part: Part, compared: str) -> str:
    value, interval = _cells(part.loss, ".4g")
    return f"{name} is {value}{f' (95 %: {interval})' * bool(interval)}, {compared}."


def _rows(found: GapParts, ghost: int, draws: int, *, is_augmented: bool, is_mixed: bool) -> list[tuple[str, ...]]:
    """The parts add up from top to bottom; positive is worse on validation, for loss and accuracy."""
    meanings = MEANINGS | (_NOT_TOLD_APART if is_augmented else {}) | (_MIXED if is_mixed else {})
    parts = [_row(f"+ {part.name}", part, meanings[part.name].format(ghost=ghost)) for part in found.parts]
    first = f"as the training loss sees it, mean of {draws} draws; a printed loss also averages over older weights"
    gap = "validation against training, both evaluated, as eval/* of a run compares them"
    return [
        _totals("training", found.train_loss, found.train_accuracy, first),
        *parts,
        _totals("validation", found.val_loss, found.val_accuracy, "evaluated"),
        _row("naive gap", found.naive, "validation against the printed training loss: the sum of all parts"),
        _row("generalization gap", found.generalization_gap, gap),
    ]


def _totals(name: str, loss: float, accuracy: float | None, meaning: str) -> tuple[str, ...]:
    return name, f"{loss:.5g}", "", "" if accuracy is None else f"{accuracy:.4f}", "", meaning


def _row(name: str, part: Part, meaning: str) -> tuple[str, ...]:
    has_accuracy = part.accuracy is not None or part.loss is None
    accuracy = _cells(part.accuracy, ".4f") if has_accuracy else ("none", "")
    return name, *_cells(part.loss, ".4g"), *accuracy, meaning


def _cells(one: Interval | None, form: str) -> tuple[Any, ...]:
    return ("none", "") if one is None else (f"{one.value:+{form}}", f"{one.low:+{form}} to {one.high:+{form}}")

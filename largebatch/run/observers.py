"""Makes the observers of a run, in the order in which they are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from largebatch.data import EvaluationLoader
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import JsonlTracker, Tracker
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import PROFILE_WARMUP_STEPS
from largebatch.run.growth import growth_observer
from largebatch.run.model_settings import noise_scale_groups
from largebatch.run.prepare import Prepared
from largebatch.run.trackers import run_ids
from largebatch.run.watched_keys import chosen_direction, is_of_evaluation, patience_of
from largebatch.training.loop import Observer
from largebatch.training.observers import (
    CheckpointObserver,
    CommunicationObserver,
    EarlyStoppingObserver,
    EvaluationObserver,
    GrowthObserver,
    GuardObserver,
    LayersObserver,
    LedgerObserver,
    MetricsObserver,
    MicroBatchObserver,
    NoiseScaleObserver,
    ProfileObserver,
    RankObserver,
    RowLog,
    SharpnessObserver,
    SkippedObserver,
    StragglerObserver,
)
from largebatch.training.observers.throughput import Throughput
from largebatch.training.observers.watched import Watched
from largebatch.training.weight_average import WeightAverage


class Records:
    """Row files of single observers, closed and asked for problems like trackers; they get no metrics.

    Args:
        runtime: only rank 0 writes.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._is_main = runtime.is_main
        self.trackers: list[Tracker] = []

    def open(self, path: Path) -> Tracker | None:
        """A tracker that writes to `path`; None on ranks other than 0."""
        if not self._is_main:
            return None
        self.trackers.append(JsonlTracker(path))
        return self.trackers[-1]


@dataclass
class RunObservers:
    """All observers of a run; the named ones are in the list, too."""

    observers: list[Observer]
    evaluation: EvaluationObserver
    checkpoints: CheckpointObserver
    noise_scale: NoiseScaleObserver | None
    communication: CommunicationObserver | None
    skipped: SkippedObserver | None
    metrics: MetricsObserver
    rows: RowLog
    growth: GrowthObserver | None


def build_observers(
    prepared: Prepared,
    folder: RunFolder,
    trackers: list[Tracker],
    records: Records,
    identity: dict[str, Any],
    evaluated: dict[str, EvaluationLoader],
    throughput: Throughput,
) -> RunObservers:
    """The observers that the config asks for, in their order; `evaluated`: loaders of the evaluated sets."""
    config, numbers = prepared.config, prepared.numbers
    rows = RowLog(trackers, num_samples=numbers.num_samples)
    average = None if numbers.average is None else WeightAverage(numbers.average)
    evaluation = replace(_evaluation(prepared, rows, evaluated), average=average)
    checkpoints = _checkpoints(prepared, folder, trackers, identity, evaluation, rows)
    # Rank checks come first, so that weights that differ across ranks are neither logged nor saved.
    live = _noise_scale(prepared, rows), _communication(config, rows)
    # Behind the measurement that it judges, before the checkpoint that has its decisions.
    growth = growth_observer(prepared, folder, rows, live[0])
    of_ranks, metrics = _ranks(prepared, rows, throughput)
    observers: list[Observer] = [*of_ranks, metrics, *(one for one in (average, evaluation, *live, growth) if one)]
    if config.batch.on_out_of_memory == "lower":
        observers.append(MicroBatchObserver(rows))
    if config.guard.policy != "off":
        observers.append(GuardObserver(rows))
    if numbers.sharpness_every is not None:
        observers.append(_sharpness(prepared, rows, every=numbers.sharpness_every))
    if config.observers.layers.every is not None:
        observers.append(LayersObserver(rows, records.open(folder.layers), every=config.observers.layers.every))
    if config.observers.ledger.enabled:
        parameters_every = config.observers.ledger.parameters_every
        observers.append(LedgerObserver(records.open(folder.ledger), parameters_every=parameters_every))
    skipped = None
    if config.data.skips:
        skipped = SkippedObserver(rows, records.open(folder.skipped), every=config.observers.metrics.every)
        observers.append(skipped)
        evaluation.tell_skipped = skipped.tell_of_validation
    observers += prepared.own_observers.values()
    if (early := config.observers.early_stopping).metric is not None:
        watched = _watched(prepared, early.metric, early.mode, evaluation, rows)
        patience = patience_of(config, numbers)
        observers.append(EarlyStoppingObserver(watched, patience=patience, min_delta=early.min_delta))
    observers.append(checkpoints)  # last: a checkpoint has the rows of its own step on disk
    if config.observers.profile.steps:
        observers.insert(0, _profiler(prepared, folder))
    return RunObservers(observers, evaluation, checkpoints, *live, skipped, metrics, rows, growth)


def _ranks(prepared: Prepared, rows: RowLog, throughput: Throughput) -> tuple[list[Observer], MetricsObserver]:
    """The observers of the ranks, and the metrics, whose rows hold the stragglers' values."""
    options = prepared.config.observers
    same = RankObserver(every=options.replicas.every, checkpoint_every=prepared.numbers.checkpoint_every)
    every = options.metrics.every
    if options.stragglers.ratio is None:
        return [same], MetricsObserver(rows, every=every, throughput=throughput)
    stragglers = StragglerObserver(ratio=options.stragglers.ratio, every=every)
    more = MetricsObserver(rows, every=every, more=lambda: stragglers.row, throughput=throughput)
    return [same, stragglers], more


def _noise_scale(prepared: Prepared, rows: RowLog) -> NoiseScaleObserver | None:
    options = prepared.config.observers.noise_scale
    if options.every is None:
        return None
    groups = noise_scale_groups(prepared.config, prepared.model)
    return NoiseScaleObserver(rows, every=options.every, window=options.window, groups=groups)


def _communication(config: TrainConfig, rows: RowLog) -> CommunicationObserver | None:
    every = config.observers.communication.every
    return None if every is None else CommunicationObserver(rows, every=every)


def _sharpness(prepared: Prepared, rows: RowLog, *, every: int) -> SharpnessObserver:
    """Sharpness during the run; only `largebatch measure sharpness` computes box and slices."""
    config = prepared.config
    options = config.observers.sharpness
    subset = FixedSubset.random(
        prepared.train_plain,
        options.samples,
        seed=config.seed,
        micro_batch_size=options.micro,
        num_workers=config.data.num_workers,
    )
    return SharpnessObserver(
        rows, subset=subset, loss=prepared.measured_loss, settings=options, seed=config.seed, every=every
    )


def _evaluation(prepared: Prepared, rows: RowLog, loaders: dict[str, EvaluationLoader]) -> EvaluationObserver:
    config = prepared.config
    return EvaluationObserver(
        rows,
        train=prepared.train_plain,
        validation=prepared.validation,
        loss=prepared.measured_loss,
        every=prepared.numbers.evaluate_every,
        micro_batch_size=config.observers.evaluation.micro,
        seed=config.seed,
        loaders=loaders,
        metrics=prepared.metrics,
        gap_is_augmented=prepared.gap_is_augmented,
    )


def _checkpoints(
    prepared: Prepared,
    folder: RunFolder,
    trackers: Sequence[Tracker],
    identity: dict[str, Any],
    evaluation: EvaluationObserver,
    rows: RowLog,
) -> CheckpointObserver:
    options = prepared.config.observers.checkpoint
    by = options.best_by
    return CheckpointObserver(
        folder,
        every=prepared.numbers.checkpoint_every,
        every_s=math.inf if options.every_minutes is None else 60 * options.every_minutes,
        keep=options.keep,
        identity=identity,
        extra=run_ids(trackers),
        evaluation=evaluation,
        best_by=None if by is None else _watched(prepared, by, options.best_mode, evaluation, rows),
        background=options.background,
        on_error=options.on_error,
        own=prepared.own_observers,
    )


def _watched(prepared: Prepared, key: str, mode: str | None, evaluation: EvaluationObserver, rows: RowLog) -> Watched:
    every, own_rows = prepared.config.observers.metrics.every, None if is_of_evaluation(key) else rows
    return Watched(key, chosen_direction(key, mode, prepared.metrics), evaluation, own_rows, every)


def _profiler(prepared: Prepared, folder: RunFolder) -> ProfileObserver:
    steps = prepared.config.observers.profile.steps
    return ProfileObserver(folder.path, num_steps=steps, warmup_steps=PROFILE_WARMUP_STEPS)

"""From a prepared config to a run: joins the job, connects loader, trackers and observers, restores a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from largebatch.checkpoint import Checkpoint
from largebatch.data import MicroBatchLoader
from largebatch.derive import PROFILE_WARMUP_STEPS
from largebatch.interruption import StopRequest
from largebatch.loop import Loader, Observer, Run
from largebatch.losses import units_are_fixed
from largebatch.observers import (
    CheckpointObserver,
    EvaluationObserver,
    Journal,
    LayersObserver,
    LedgerObserver,
    MetricsObserver,
    NoiseScaleObserver,
    ProfileObserver,
    RankObserver,
    WatchedLoader,
    restore,
)
from largebatch.order import SampleOrder
from largebatch.plan_report import plan_record
from largebatch.prepare import Prepared, noise_scale_groups
from largebatch.resume import check_identity, find_checkpoint, run_identity
from largebatch.run_folder import RunFolder, new_folder
from largebatch.runtime import Runtime
from largebatch.same_run import require_same_run, run_fingerprint
from largebatch.trackers import JsonlTracker, ProgressLine, TensorBoardTracker, Tracker, WandbTracker


@dataclass
class Job:
    """A run and what surrounds it, as `open_job` yields it."""

    run: Run
    folder: RunFolder
    trackers: list[Tracker]
    evaluation: EvaluationObserver
    checkpoints: CheckpointObserver
    noise_scale: NoiseScaleObserver | None
    notes: list[str]


@contextlib.contextmanager
def open_job(prepared: Prepared, stop: StopRequest, overrides: Sequence[str]) -> Iterator[Job]:
    """Join the job of the launcher, yield the run ready to train, and leave the job.

    Raises:
        LauncherError: if launcher and accelerate disagree, or the ranks are not the same run.
        CheckpointError: if the run to resume has no usable checkpoint, or was another run.
    """
    config = prepared.config
    runtime = Runtime.open(
        precision=config.precision.compute, tf32=config.precision.tf32, timeout_s=config.launcher.timeout_s
    )
    try:
        if runtime.world_size > 1:
            require_same_run(runtime, run_fingerprint(prepared))
        name = config.run.name or config.data.name
        folder = RunFolder(Path(runtime.broadcast(config.run.dir or str(new_folder(config.run.root, name)))))
        identity = run_identity(prepared)
        checkpoint, notes = find_checkpoint(config.resume, folder, runtime)
        if checkpoint is not None:
            check_identity(checkpoint, identity)
        if runtime.is_main:
            folder.write_inputs(
                config_yaml=OmegaConf.to_yaml(prepared.public), overrides=overrides, plan=plan_record(prepared.derived)
            )
        with contextlib.ExitStack() as stack:
            trackers = _trackers(prepared, folder, checkpoint, stack) if runtime.is_main else []
            records = Records(runtime, resume_at_step=checkpoint.values["step"] if checkpoint else 0)
            job = _connect(prepared, runtime, folder, trackers, records, identity, stop)
            job.notes += notes
            if checkpoint is not None:
                restore(job.run, checkpoint)
            yield job
    finally:
        runtime.close()


def _trackers(
    prepared: Prepared, folder: RunFolder, checkpoint: Checkpoint | None, stack: contextlib.ExitStack
) -> list[Tracker]:
    config, derived = prepared.config, prepared.derived
    wandb_config = config.logger.wandb
    values: dict[str, Any] = checkpoint.values if checkpoint else {"step": None, "samples_seen": None, "extra": {}}
    trackers: list[Tracker] = [JsonlTracker(folder.metrics, resume_at_step=values["step"])]
    if wandb_config.mode != "disabled":
        trackers.append(
            WandbTracker(
                folder=folder.path,
                project=wandb_config.project,
                name=config.run.name or config.data.name,
                config={"config": prepared.public, "plan": plan_record(derived)},
                mode=wandb_config.mode,
                group=wandb_config.group,
                tags=wandb_config.tags,
                run_id=values["extra"].get("wandb_run_id"),
            )
        )
    if config.logger.tensorboard:
        resume_at = values["samples_seen"]
        trackers.append(TensorBoardTracker(folder.path / "tensorboard", resume_at_samples=resume_at))
    if config.observers.progress:
        line = ProgressLine(total_steps=derived.num_steps, total_samples=derived.num_consumed)
        trackers.append(stack.enter_context(line))
    return trackers


class Records:
    """Files of one observer's rows each: closed and asked for problems like trackers; metrics do not go there.

    Args:
        runtime: rank 0 writes.
        resume_at_step: rows of later steps are set aside.
    """

    def __init__(self, runtime: Runtime, *, resume_at_step: int) -> None:
        self._is_main = runtime.is_main
        self._resume_at_step = resume_at_step
        self.trackers: list[Tracker] = []

    def open(self, path: Path) -> Tracker | None:
        """A tracker for `path`; None on other ranks than 0."""
        if not self._is_main:
            return None
        self.trackers.append(JsonlTracker(path, resume_at_step=self._resume_at_step))
        return self.trackers[-1]


def _connect(
    prepared: Prepared,
    runtime: Runtime,
    folder: RunFolder,
    trackers: list[Tracker],
    records: Records,
    identity: dict[str, Any],
    stop: StopRequest,
) -> Job:
    config, derived = prepared.config, prepared.derived
    journal = Journal(trackers, num_samples=derived.num_samples)
    evaluation = _evaluation(prepared, journal)
    checkpoints = _checkpoints(prepared, folder, trackers, identity)
    loader: Loader = _loader(prepared, runtime)
    # The ranks first, so that nothing is logged or saved of weights that they do not share.
    noise_scale = _noise_scale(prepared, journal)
    observers: list[Observer] = [_ranks(prepared), MetricsObserver(journal), evaluation, *filter(None, [noise_scale])]
    if config.observers.layers.every is not None:
        observers.append(LayersObserver(journal, records.open(folder.layers), every=config.observers.layers.every))
    if (ledger := config.observers.ledger).enabled:
        loader = watched = WatchedLoader(loader)
        observers.append(LedgerObserver(records.open(folder.ledger), watched, parameters_every=ledger.parameters_every))
    observers.append(checkpoints)  # last: a checkpoint has the rows of its own step on disk
    if config.observers.profile.steps:
        observers.insert(0, _profiler(prepared, folder))
    run = Run(
        runtime=runtime,
        model=_wrapped(prepared, runtime),
        loss=prepared.loss,
        optimizer=prepared.optimizer,
        plan=derived.ramp,
        loader=loader,
        lr_at=derived.lr_at,
        num_steps=derived.num_steps,
        fixed_units=units_are_fixed(prepared.loss, prepared.train),
        seed=config.seed,
        clip_norm=config.clip_norm,
        ordered=config.batch.reduction == "ordered",
        exact_batch_norm=config.batch_norm == "exact",
        compression=config.precision.gradient_compression,
        log_every=config.observers.metrics.every,
        observers=observers,
        stop_requested=stop,
    )
    return Job(run, folder, [*trackers, *records.trackers], evaluation, checkpoints, noise_scale, notes=[])


def _ranks(prepared: Prepared) -> RankObserver:
    every = prepared.config.observers.ranks.compare_every
    return RankObserver(every=every, checkpoint_every=prepared.derived.checkpoint_every)


def _noise_scale(prepared: Prepared, journal: Journal) -> NoiseScaleObserver | None:
    options = prepared.config.observers.noise_scale
    if options.every is None:
        return None
    groups = noise_scale_groups(prepared.config, prepared.model)
    return NoiseScaleObserver(journal, every=options.every, window=options.window, groups=groups)


def _loader(prepared: Prepared, runtime: Runtime) -> MicroBatchLoader:
    config, derived = prepared.config, prepared.derived
    return MicroBatchLoader(
        prepared.train,
        SampleOrder(derived.num_samples, config.seed),
        derived.ramp,
        runtime.rank,
        augment=prepared.augment,
        num_workers=config.data.num_workers,
        pin_memory=runtime.device.type == "cuda",
        seed=config.seed,
        timeout_s=config.data.timeout_s,
    )


def _evaluation(prepared: Prepared, journal: Journal) -> EvaluationObserver:
    config = prepared.config
    return EvaluationObserver(
        journal,
        train=prepared.train_plain,
        validation=prepared.validation,
        loss=prepared.measured_loss,
        every=prepared.derived.evaluate_every,
        micro_batch_size=config.observers.evaluation.micro,
        seed=config.seed,
        num_workers=config.data.num_workers,
        timeout_s=config.data.timeout_s,
    )


def _checkpoints(
    prepared: Prepared, folder: RunFolder, trackers: Sequence[Tracker], identity: dict[str, Any]
) -> CheckpointObserver:
    run_ids = [tracker.run_id for tracker in trackers if isinstance(tracker, WandbTracker)]
    return CheckpointObserver(
        folder.checkpoints,
        every=prepared.derived.checkpoint_every,
        keep=prepared.config.observers.checkpoint.keep,
        identity=identity,
        extra={"wandb_run_id": run_ids[0]} if run_ids else {},
    )


def _profiler(prepared: Prepared, folder: RunFolder) -> ProfileObserver:
    steps = prepared.config.observers.profile.steps
    return ProfileObserver(folder.path, num_steps=steps, warmup_steps=PROFILE_WARMUP_STEPS)


def _wrapped(prepared: Prepared, runtime: Runtime) -> nn.Module:
    if prepared.config.precision.compile:
        prepared.model.compile()  # in place: parameter names stay as they are
    return runtime.wrap(prepared.model)

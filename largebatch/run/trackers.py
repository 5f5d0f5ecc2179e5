"""Opens the trackers of a run on rank 0, and those of the run that it resumes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import (
    JsonlTracker,
    MlflowTracker,
    ProgressLine,
    TensorBoardTracker,
    Tracker,
    TrackioTracker,
    WandbTracker,
)
from largebatch.run.plan_report import plan_record
from largebatch.run.prepare import Prepared
from largebatch.run.resume import Start


def open_trackers(prepared: Prepared, folder: RunFolder, start: Start, stack: contextlib.ExitStack) -> list[Tracker]:
    """The trackers that the config asks for; the first one writes metrics.jsonl."""
    config, numbers = prepared.config, prepared.numbers
    values: dict[str, Any] = start.checkpoint.values if start.checkpoint else {"samples_seen": None, "extra": {}}
    extra = {} if start.is_branch else values["extra"]
    shown = {"config": prepared.public, "plan": plan_record(prepared)}
    trackers: list[Tracker] = [JsonlTracker(folder.metrics)]
    if config.logger.wandb.mode != "disabled":
        given = config.logger.wandb.model_dump()
        given["name"] = given["name"] or config.run.name
        defaults, run_id = {"name": config.shown_name}, extra.get("wandb_run_id")
        trackers.append(WandbTracker(folder=folder.path, config=shown, defaults=defaults, run_id=run_id, **given))
    if config.logger.tensorboard:
        resume_at, events = values["samples_seen"], folder.path / "tensorboard"
        if resume_at is None and events.exists():
            resume_at = -1  # these events are from an attempt without a checkpoint
        trackers.append(TensorBoardTracker(events, resume_at_samples=resume_at))
    if config.logger.mlflow.enabled:
        given = config.logger.mlflow.model_dump(exclude={"enabled"})
        run_id = extra.get("mlflow_run_id")
        trackers.append(MlflowTracker(config=shown, name=config.shown_name, run_id=run_id, **given))
    if config.logger.trackio.enabled:
        given = config.logger.trackio.model_dump(exclude={"enabled"})
        run_name = extra.get("trackio_run_name")
        trackers.append(TrackioTracker(config=shown, name=folder.path.name, run_name=run_name, **given))
    if config.observers.progress:
        line = ProgressLine(total_steps=numbers.num_steps, total_samples=numbers.num_consumed)
        trackers.append(stack.enter_context(line))
    return trackers


def run_ids(trackers: Sequence[Tracker]) -> dict[str, str]:
    """What a checkpoint keeps so that a resume continues the same runs of W&B, MLflow and Trackio."""
    return {name: one for tracker in trackers for name, one in getattr(tracker, "run_ids", {}).items()}


def wandb_variables(trackers: Sequence[Tracker]) -> list[str]:
    """A note of the variables of W&B that named its run."""
    names = [name for one in trackers if isinstance(one, WandbTracker) for name in one.variables]
    return [f"W&B run as {', '.join(names)} say{'' if len(names) > 1 else 's'}"] if names else []

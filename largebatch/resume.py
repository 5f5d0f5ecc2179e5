"""Which checkpoint a run continues from, and whether it belongs to this run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largebatch.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_valid
from largebatch.prepare import Prepared
from largebatch.run_folder import RunFolder
from largebatch.runtime import Runtime
from largebatch.targets import TargetError, find_target

# A run with another value of one of these is another run: a checkpoint of it must not be continued.
_IDENTITY = (
    "seed",
    "length",
    "clip_norm",
    "batch_norm",
    "scaling",
    "schedule",
    "optimizer",
    "parameters",
    "model",
    "loss",
)

# What runs did before these keys existed.
_BEFORE = {
    "batch_norm": "ghost",
    "ramp": {"milestones": [], "totals": [], "in_place_of_decay": False, "max_total": None},
}
_SCHEDULE_BEFORE = {"warmup_kind": "gradual"}


def run_identity(prepared: Prepared) -> dict[str, Any]:
    """What makes a run this run, as plain values."""
    config, plain = prepared.config, prepared.public
    return {key: plain[key] for key in _IDENTITY} | {
        "global_batch_size": prepared.derived.plan.global_batch_size,
        "ramp": plain["batch"]["ramp"],
        "precision": config.precision.compute,
        "data": {"name": config.data.name, "num_samples": len(prepared.train), "augment": plain["data"]["augment"]},
    }


def find_checkpoint(
    resume: str, folder: RunFolder, runtime: Runtime, *, key: str = "resume"
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from and why newer ones were passed over; rank 0 chooses, every rank reads the file.

    `key` is what errors call `resume`.

    Raises:
        CheckpointError: if `resume` names a folder without a valid checkpoint.
    """
    if resume == "none":
        return None, []
    chosen: Checkpoint | None = None
    notes: list[str] = []
    failure: str | None = None
    if runtime.is_main:
        path = folder.path if resume == "auto" else Path(resume)
        try:
            chosen, notes = _newest(path)
        except CheckpointError as error:
            failure = str(error)
        if chosen is None and failure is None and resume != "auto":
            failure = f"{key}={resume}: no valid checkpoint there. " + " ".join(notes or ["There is none at all."])
    where, notes, failure = runtime.broadcast((str(chosen.path) if chosen else None, notes, failure))
    if failure is not None:
        raise CheckpointError(failure)
    if where is None:
        return None, [*notes, "resume=auto: no checkpoint yet, starting from scratch"]
    checkpoint = chosen or load_checkpoint(Path(where))
    return checkpoint, [*notes, f"resumed from {where}"]


def _newest(path: Path) -> tuple[Checkpoint | None, list[str]]:
    if (path / "MANIFEST.json").exists():
        return load_checkpoint(path), []
    return newest_valid(RunFolder(path).checkpoints)


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Refuse to continue a run as another one.

    Raises:
        CheckpointError: with every key that changed, and both values.
    """
    saved = checkpoint.values["identity"]
    changed = list(_differences(_completed(saved), _completed(identity)))
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} belongs to a run with another config: {'; '.join(changed)}. "
            "Resume with the same values, or start a new run with resume=none."
        )


def _completed(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with keys that are newer than it, and the options that the config left to the optimizer's class.

    So a run that began before an option existed, or before conf/ named it, can go on with the value that it had.
    """
    identity = _BEFORE | identity | {"schedule": _SCHEDULE_BEFORE | identity["schedule"]}
    node = identity["optimizer"]
    try:
        parameters = inspect.signature(find_target("optimizer", node)).parameters
    except (TargetError, TypeError, ValueError):  # a class that is gone, or without a signature
        return identity
    defaults = {
        name: list(one.default) if isinstance(one.default, tuple) else one.default
        for name, one in parameters.items()
        if one.default is not inspect.Parameter.empty
    }
    return identity | {"optimizer": defaults | node}


def _differences(saved: Any, given: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            yield from _differences(saved.get(key), given.get(key), f"{prefix}.{key}" if prefix else key)
    elif saved != given:
        yield f"{prefix} was {saved}, now {given}"

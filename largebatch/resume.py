"""Which checkpoint a run continues from, and whether it belongs to this run."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from largebatch.checkpoint import Checkpoint, CheckpointError, find_valid, load_checkpoint, saved_versions
from largebatch.line_file import LineFile
from largebatch.optim.learning_rates import DEPTH_PATTERN
from largebatch.prepare import Prepared
from largebatch.run_folder import RunFolder
from largebatch.runtime import Runtime
from largebatch.schema import CHANGEABLE
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

_HASHED_BYTES = 2**20  # of each file; the size stands for the rest

# What runs did before these keys existed.
_BEFORE: dict[str, Any] = {
    "batch_norm": "ghost",
    "guard": None,
    "ramp": {"milestones": [], "totals": [], "in_place_of_decay": False, "max_total": None},
}
_SCHEDULE_BEFORE = {"warmup_kind": "gradual"}
_PARAMETERS_BEFORE = {"lr_factor": None, "layer_decay": None, "layer_pattern": DEPTH_PATTERN}


def run_identity(prepared: Prepared) -> dict[str, Any]:
    """What makes a run this run, as plain values."""
    config, plain = prepared.config, prepared.public
    return {key: plain[key] for key in _IDENTITY} | {
        "global_batch_size": prepared.derived.plan.global_batch_size,
        "ramp": plain["batch"]["ramp"],
        "guard": plain["guard"] if config.guard.acts else None,
        "precision": config.precision.compute,
        "content": prepared.content,
        "model_files": _files_named(plain["model"]),
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
            chosen, notes = find_valid(path)
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


@dataclass(frozen=True)
class Change:
    """A value of the config that a run goes on with, and what it was."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.key == "content":
            return f"samples of the training set are others (their hash was {self.was}, now {self.now})"
        return f"{self.key} was {self.was}, now {self.now}"

    @property
    def permission(self) -> str | None:
        """The value of resume_allow that would let it pass; None: nothing would."""
        section = self.key.partition(".")[0]
        return section if section in CHANGEABLE else None


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any], *, allow: Sequence[str] = ()) -> list[Change]:
    """Refuse to continue a run as another one.

    Args:
        checkpoint: to continue from.
        identity: of the run that would go on.
        allow: what may differ, out of `CHANGEABLE`: sections of the config, or the content of the training set.

    Returns:
        What differs and is allowed to.

    Raises:
        CheckpointError: with every key that changed and is not allowed to, and both values.
    """
    saved = {"content": identity["content"]} | checkpoint.values["identity"]  # once it was not recorded
    defaults = _optimizer_defaults(identity["optimizer"])
    were, now = (_completed(one, defaults) for one in (_at_home(saved, identity), identity | {"model_files": None}))
    changes = list(_differences(were, now))
    refused = [change for change in changes if change.permission not in allow]
    if refused:
        permissions = {change.permission for change in refused}
        asked = ",".join(sorted(set(map(str, permissions)) | set(allow)))
        way_out = "" if None in permissions else f" To change it on purpose: 'resume_allow=[{asked}]'."
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(map(str, refused))}. "
            f"Resume with the same values, or start a new run with resume=none.{way_out}"
        )
    return changes


def start_notes(checkpoint: Checkpoint | None, changes: Sequence[Change]) -> list[str]:
    """What a person should know of how a run goes on: changed values, changed versions."""
    notes = [f"changed, as resume_allow permits: {change}" for change in changes]
    now = saved_versions()
    for name, version in (checkpoint.versions if checkpoint else {}).items():
        if version != now.get(name):
            told = f"saved by {name} {version}, now {now.get(name)}"
            notes.append(f"{told}: last digits may differ from those of an uninterrupted run")
    return notes


def record_start(
    folder: RunFolder, checkpoint: Checkpoint | None, changes: Sequence[Change], *, world_size: int
) -> None:
    """Append to history.jsonl how the run began or went on: position, processes, versions and changed values.

    Raises:
        OSError: if it cannot be written.
    """
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": checkpoint.values["step"] if checkpoint else 0,
        "resumed_from": str(checkpoint.path) if checkpoint else None,
        "changed": [asdict(change) for change in changes],
        "world_size": world_size,
        "versions": saved_versions(),
    }
    history = LineFile(folder.history)
    history.append(json.dumps(row).encode())
    history.close()


def _completed(identity: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The identity with keys that are newer than it, and the options that the config left to the optimizer's class.

    So a run that began before an option existed, or before conf/ named it, can go on with the value that it had.
    """
    sections = {"schedule": _SCHEDULE_BEFORE, "parameters": _PARAMETERS_BEFORE}
    identity = _BEFORE | identity | {name: before | identity[name] for name, before in sections.items()}
    node = identity["optimizer"]
    return identity | {"optimizer": defaults | node if node.get("_target_") == defaults["_target_"] else node}


def _optimizer_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """What the class of the given config takes where a config says nothing, and its name.

    Never of the class that a checkpoint names: to look that one up would be to import it.
    """
    named = {"_target_": node["_target_"]}
    try:
        arguments = inspect.signature(find_target("optimizer", node)).parameters
    except (TargetError, TypeError, ValueError):  # a class that is gone, or without a signature
        return named
    return named | {
        name: list(one.default) if isinstance(one.default, tuple) else one.default
        for name, one in arguments.items()
        if one.default is not inspect.Parameter.empty
    }


def _files_named(section: dict[str, Any]) -> dict[str, str]:
    """Of every value of a section that is a path here: a hash of sizes and beginnings of the files there."""
    return {
        key: _files_sha256(Path(value))
        for key, value in section.items()
        if isinstance(value, str) and value and os.path.exists(value)
    }


def _files_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        with file.open("rb") as opened:
            start = opened.read(_HASHED_BYTES)
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode() + start)
    return digest.hexdigest()[:16]


def _at_home(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A saved identity with the paths of this machine, where the same files lie at another one: a moved run."""
    were, now = saved.get("model_files") or {}, given["model_files"]
    moved = {key: given["model"][key] for key in were.keys() & now.keys() if were[key] == now[key]}
    return saved | {"model": saved["model"] | moved, "model_files": None}


def _differences(saved: Any, given: Any, prefix: str = "") -> Iterator[Change]:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            yield from _differences(saved.get(key), given.get(key), f"{prefix}.{key}" if prefix else key)
    elif saved != given:
        yield Change(prefix, saved, given)

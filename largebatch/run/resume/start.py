"""Opens the run folder, chooses the checkpoint to resume from, and records the start."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from largebatch.distributed.rendezvous import LauncherError
from largebatch.distributed.runtime import Runtime
from largebatch.optim.scaled_groups import ScaledGroups
from largebatch.records.checkpoint import (
    Checkpoint,
    CheckpointError,
    saved_versions,
    set_later_aside,
)
from largebatch.records.checkpoint.reading import plain
from largebatch.records.folder_lock import LOCK, FolderInUseError, FolderLock
from largebatch.records.line_file import LineFile
from largebatch.records.run_folder import RunFolder, new_folder
from largebatch.records.trackers import Row, set_stale_rows_aside
from largebatch.run.checks.machine import folder_problems
from largebatch.run.config.schema import TrainConfig
from largebatch.run.prepare import Prepared
from largebatch.run.resume.finding import find_checkpoint
from largebatch.run.resume.fitting import changed_options, fits_run
from largebatch.run.resume.identity import Change, check_identity
from largebatch.run.trunk import Trunk

_EFFECT = {True: "it may compute something else now", False: "last digits may differ from an uninterrupted run"}
_ENDS_WITHIN_S = 60.0  # torchrun gives ranks 30 s to end before it kills them


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        checkpoint: to continue from; None: start from scratch.
        changes: permitted differences from the run of the checkpoint.
        passed_over: reasons that newer checkpoints were not used, one line each.
        notes: facts to print, one line each.
        is_branch: whether the checkpoint is another run's, which this one leaves: trackers begin runs of their own.
    """

    checkpoint: Checkpoint | None = None
    changes: Sequence[Change] = ()
    passed_over: Sequence[str] = ()
    notes: Sequence[str] = ()
    is_branch: bool = False

    @property
    def step(self) -> int:
        """Last step whose records belong to this run; -1: no record does."""
        return -1 if self.checkpoint is None else int(self.checkpoint.values["step"])

    def changed_options(self, scaled: ScaledGroups | None) -> frozenset[str]:
        """Options of the optimizer that have other values than in the checkpoint; `scaled`: that follow the batch."""
        return changed_options(self.changes, scaled)


def open_folder(config: TrainConfig, runtime: Runtime, stack: contextlib.ExitStack) -> tuple[RunFolder, list[str]]:
    """The folder of the run, and notes about it. Rank 0 locks it until the stack closes.

    Without run.dir a new folder is made; it is removed with the stack if nothing was written into it.

    Raises:
        LauncherError: on every rank, if another process uses it, it holds another run, or it cannot be written to.
    """
    path, notes, refusal = config.run.dir, list[str](), None
    come_back: list[Callable[[Path], object]] = []
    if runtime.is_main:
        try:
            if path is None:
                path = str(new_folder(config.run.root, config.folder_name))
                stack.callback(_remove_if_unused, Path(path))
            # After a restart, rank 0 of the previous attempt may still be ending, maybe on another node.
            wait_s = _ENDS_WITHIN_S if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" else 0.0
            lock = stack.enter_context(FolderLock(Path(path), wait_s=wait_s))
            come_back.append(lock.take_again)
            notes = [] if lock.problem is None else [lock.problem]
            # What another start has left here since this one was checked.
            refusal = " ".join(folder_problems(config)) if config.run.dir is not None else None
        except FolderInUseError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"{path or config.run.root} cannot be written to: {error}. Make room, or choose another run.dir."
    path, notes, refusal = runtime.broadcast((path, notes, refusal))
    if refusal:
        raise LauncherError(refusal)
    folder = RunFolder(Path(path), come_back)
    stack.callback(folder.leave)
    return folder, notes


def _remove_if_unused(path: Path) -> None:
    with contextlib.suppress(OSError):  # something was written
        if [one.name for one in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
        path.rmdir()


def begin(prepared: Prepared, folder: RunFolder, runtime: Runtime, identity: dict[str, Any]) -> Start:
    """Choose the checkpoint and check that the run can continue from it; nothing is written.

    Raises:
        CheckpointError: on every rank, if no checkpoint can be used, or it belongs to another run or model.
    """
    config = prepared.config
    checkpoint, passed_over = find_checkpoint(config.resume, folder, runtime, fits=fits_run(prepared, identity))
    if checkpoint is None and prepared.numbers.trunk is not None:
        return _branch(prepared, prepared.numbers.trunk, folder, runtime, identity)
    if checkpoint is None:
        notes = ["resume=auto: no checkpoint yet, starting from scratch"] if config.resume == "auto" else []
        return Start(notes=notes)
    changes = check_identity(checkpoint, identity, allow=config.resume_allow)
    notes = [f"resumed from {checkpoint.path}", *_notes_of_changes(checkpoint, changes)]
    if passed_over:
        notes = [*passed_over, f"{len(passed_over)} newer checkpoints were passed over and are kept", *notes]
    return Start(checkpoint, changes, passed_over, notes)


def _branch(prepared: Prepared, trunk: Trunk, folder: RunFolder, runtime: Runtime, identity: dict[str, Any]) -> Start:
    """The start of a cooldown: the trunk's checkpoint, which must be of the same run but for the cooldown."""
    identity = identity | {"cooldown": None}
    found, _ = find_checkpoint(
        str(trunk.checkpoint), folder, runtime, key="cooldown.checkpoint", fits=fits_run(prepared, identity)
    )
    assert found is not None  # or it was refused
    if (inside := found.values["identity"].get("cooldown")) is not None:
        raise CheckpointError(
            f"{found.path}: lies inside a cooldown ({plain(inside)}), and a cooldown begins at a checkpoint of its "
            "trunk. Name one of these, or go on with this one by resume=auto."
        )
    changes = check_identity(found, identity, allow=prepared.config.resume_allow, of_trunk=True)
    if found.values["samples_seen"] != trunk.samples_seen:
        raise CheckpointError(f"{found.path}: another checkpoint has taken its place meanwhile. Start again.")
    last = prepared.numbers.schedule.total_samples
    where = f"after {trunk.samples_seen:,} samples, where the cooldown to {last:,} samples begins"
    notes = [f"left the trunk at {found.path}, {where}", *_notes_of_changes(found, changes)]
    return Start(found, changes, notes=notes, is_branch=True)


def _notes_of_changes(checkpoint: Checkpoint, changes: Sequence[Change]) -> list[str]:
    notes = [
        f"changed since the checkpoint: {change}; {_EFFECT[change.is_code]}"
        if change.is_only_told
        else f"changed, as resume_allow permits: {change}"
        for change in changes
    ]
    now = saved_versions()
    for name, version in checkpoint.versions.items():
        if version != now.get(name):
            saved = f"saved by {plain(name)} {plain(version)}, now {now.get(name)}"
            notes.append(f"{saved}: last digits may differ from an uninterrupted run")
    return notes


def record_start(
    folder: RunFolder, start: Start, runtime: Runtime, *, config: Any, overrides: Sequence[str], plan: Any
) -> list[str]:
    """Write config, overrides and plan, set aside records later than the checkpoint, and append to history.jsonl.

    Rows of later steps are set aside because the run computes these steps again. Later checkpoints of the same run are
    set aside if it returns to an older one. Returns notes to print.

    Raises:
        LauncherError: on every rank, if it cannot be written.
    """
    notes, refusal = list[str](), None
    if runtime.is_main:
        try:
            folder.write_inputs(config_yaml=OmegaConf.to_yaml(config), overrides=overrides, plan=plan)
            notes = _set_aside(folder, start)
            _append_history(folder, start, runtime.world_size)
            folder.come_back.append(lambda _: _append_history(folder, start, runtime.world_size))
        except OSError as error:
            refusal = f"{folder.path} cannot be written to: {error}. Make room, or choose another run.dir."
    notes, refusal = runtime.broadcast((notes, refusal))
    if refusal is not None:
        raise LauncherError(refusal)
    return notes


def _set_aside(folder: RunFolder, start: Start) -> list[str]:
    owes = start.checkpoint is not None and start.checkpoint.values.get("evaluation_owed", False)
    for record in (folder.metrics, folder.ledger, folder.layers, folder.skipped):
        set_stale_rows_aside(record, start.step, comes_again=lambda row: owes and _is_of_evaluation(row))
    aside = None
    source: Sequence[Path] = () if start.checkpoint is None else start.checkpoint.path.resolve().parents
    if folder.checkpoints.resolve() in source and not start.passed_over:  # passed-over checkpoints stay in place
        aside = set_later_aside(folder.checkpoints, start.step)
    return [] if aside is None else [f"later checkpoints were set aside, into {aside}"]


def _is_of_evaluation(row: Row) -> bool:
    return row.get("set") == "validation" or any(name.startswith("eval/") for name in row)


def _append_history(folder: RunFolder, start: Start, world_size: int) -> None:
    """Append position, processes, versions, changes and passed-over checkpoints to history.jsonl."""
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": max(start.step, 0),
        "resumed_from": str(start.checkpoint.path) if start.checkpoint else None,
        "changed": [asdict(change) for change in start.changes],
        "passed_over": list(start.passed_over),
        "world_size": world_size,
        "versions": saved_versions(),
    }
    history = LineFile(folder.history)
    history.append(json.dumps(row).encode())
    history.close()

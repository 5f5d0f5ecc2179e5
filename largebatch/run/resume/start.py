"""In which folder a run begins, from which checkpoint, and what is told and recorded of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from largebatch.distributed.gather import gather_texts
from largebatch.distributed.runtime import LauncherError, Runtime
from largebatch.records.checkpoint import (
    Checkpoint,
    CheckpointError,
    Fits,
    find_valid,
    load_checkpoint,
    newest_valid,
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
from largebatch.run.resume.fitting import fits_run
from largebatch.run.resume.identity import Change, changed_options, check_identity

_ENDS_WITHIN_S = 60.0  # torchrun leaves ranks 30 s to end before it kills them


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        checkpoint: that it goes on from; None: it begins with nothing.
        changes: what differs from the run of the checkpoint, and may.
        passed_over: why newer checkpoints were not taken, one line each.
        notes: what a person should know, one line each.
    """

    checkpoint: Checkpoint | None = None
    changes: Sequence[Change] = ()
    passed_over: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def step(self) -> int:
        """Records of later steps are not those of this run; -1: none of them are."""
        return -1 if self.checkpoint is None else int(self.checkpoint.values["step"])

    @property
    def changed_options(self) -> frozenset[str]:
        """Options of the optimizer that have other values than in the checkpoint."""
        return changed_options(self.changes)


def open_folder(config: TrainConfig, runtime: Runtime, stack: contextlib.ExitStack) -> tuple[RunFolder, list[str]]:
    """The folder of the run, held by rank 0 for as long as the stack is, and what is to be told of it.

    A folder without a name in the config is made here, and is nobody else's. One that this made, and in which nothing
    was written, is gone with the stack.

    Raises:
        LauncherError: on every rank, if another process holds it, it holds another run, or it cannot be written to.
    """
    path, notes, refusal = config.run.dir, list[str](), None
    come_back: list[Callable[[Path], object]] = []
    if runtime.is_main:
        try:
            if path is None:
                path = str(new_folder(config.run.root, config.folder_name))
                stack.callback(_remove_if_unused, Path(path))
            # Started again, it may come before the rank 0 of the attempt before is gone, on another node maybe.
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
    """Choose the checkpoint and check that the run goes on from it; the folder is held, and nothing is written.

    Raises:
        CheckpointError: on every rank, if there is none that can be used, or it belongs to another run or model.
    """
    config = prepared.config
    checkpoint, passed_over = find_checkpoint(config.resume, folder, runtime, fits=fits_run(prepared, identity))
    if checkpoint is None:
        notes = ["resume=auto: no checkpoint yet, starting from scratch"] if config.resume == "auto" else []
        return Start(notes=notes)
    changes = check_identity(checkpoint, identity, allow=config.resume_allow)
    notes = [f"resumed from {checkpoint.path}", *_told(checkpoint, changes)]
    if passed_over:
        notes = [*passed_over, f"{len(passed_over)} newer checkpoints were passed over and are kept", *notes]
    return Start(checkpoint, changes, passed_over, notes)


def find_checkpoint(
    resume: str, folder: RunFolder, runtime: Runtime, *, key: str = "resume", fits: Fits | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from and why newer ones were passed over; rank 0 chooses, every rank reads the file.

    `key` is what errors call `resume`; `fits` tells what must not be used, see `Fits`. With `auto` there may be none:
    (None, []).

    Raises:
        CheckpointError: on every rank, if there are checkpoints and none can be used, if `resume` names a folder
            without one, or if a rank cannot read what rank 0 has chosen.
    """
    if resume == "none":
        return None, []
    chosen: Checkpoint | None = None
    notes: list[str] = []
    failure: str | None = None
    if runtime.is_main:
        try:
            if resume == "auto":  # the best one is a checkpoint as any other, and may be the only one
                chosen, notes = newest_valid(folder.checkpoints, folder.checkpoints / "best", fits=fits)
            else:
                chosen, notes = find_valid(Path(resume), fits)
        except CheckpointError as error:
            failure = str(error)
        if chosen is None and failure is None and (notes or resume != "auto"):
            failure = _refusal(f"{key}={resume}", folder if resume == "auto" else None, notes)
    where, notes, failure = runtime.broadcast((str(chosen.path) if chosen else None, notes, failure))
    if failure is not None:
        raise CheckpointError(failure)
    return (None if where is None else _read_by_all(Path(where), chosen, runtime, fits)), notes


def _read_by_all(path: Path, chosen: Checkpoint | None, runtime: Runtime, fits: Fits | None) -> Checkpoint:
    """A rank that cannot read it must not leave the others waiting for it."""
    failure = None
    try:
        chosen = chosen or load_checkpoint(path, fits)
    except CheckpointError as error:
        failure = str(error)
    failures = [failure] if runtime.world_size == 1 else map(json.loads, gather_texts(runtime, json.dumps(failure)))
    if told := "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(failures) if one):
        raise CheckpointError(
            f"Rank 0 can read {path}, but not every rank can: {told} All ranks read the checkpoint: keep run folders "
            "on a file system that all nodes share."
        )
    assert chosen is not None
    return chosen


def _refusal(asked: str, folder: RunFolder | None, notes: Sequence[str]) -> str:
    if not notes:
        return f"{asked}: no valid checkpoint there. There is none at all."
    where = "there" if folder is None else f"in {folder.checkpoints}"
    told = "".join(f"\n  - {note}" for note in notes)
    return (
        f"{asked}: no valid checkpoint {where}. None of {len(notes)} can be used, and nothing was started or "
        f"changed:{told}\nMake one of them usable as its line says, or "
        + ("name another one." if folder is None else "begin anew in another run.dir.")
    )


def _told(checkpoint: Checkpoint, changes: Sequence[Change]) -> list[str]:
    notes = [
        f"changed since the checkpoint: {change}; what it computes may be another thing"
        if change.is_code
        else f"changed, as resume_allow permits: {change}"
        for change in changes
    ]
    now = saved_versions()
    for name, version in checkpoint.versions.items():
        if version != now.get(name):
            told = f"saved by {plain(name)} {plain(version)}, now {now.get(name)}"
            notes.append(f"{told}: last digits may differ from those of an uninterrupted run")
    return notes


def record_start(
    folder: RunFolder, start: Start, runtime: Runtime, *, config_yaml: str, overrides: Sequence[str], plan: Any
) -> list[str]:
    """Write what the run was asked for, set aside what is later than its checkpoint, and record how it begins.

    Rows of later steps come again, whichever records this start keeps. A run that goes back to one of its older
    checkpoints sets the later ones aside: of what follows they are no part. Returns what is to be told.

    Raises:
        LauncherError: on every rank, if it cannot be written.
    """
    notes, refusal = list[str](), None
    if runtime.is_main:
        try:
            folder.write_inputs(config_yaml=config_yaml, overrides=overrides, plan=plan)
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
    if folder.checkpoints.resolve() in source and not start.passed_over:  # those were told, and stay where they are
        aside = set_later_aside(folder.checkpoints, start.step)
    return [] if aside is None else [f"later checkpoints were set aside, into {aside}"]


def _is_of_evaluation(row: Row) -> bool:
    return row.get("set") == "validation" or any(name.startswith("eval/") for name in row)


def _append_history(folder: RunFolder, start: Start, world_size: int) -> None:
    """Position, processes, versions, changed values and what was passed over."""
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

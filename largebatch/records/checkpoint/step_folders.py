"""The directories of saved steps: how they are named, found, replaced and removed.

Only directories that this version or an older one wrote are removed or replaced: see `is_ours`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
from pathlib import Path

from largebatch.records.checkpoint.manifest import CheckpointError, read_manifest, verify_files
from largebatch.records.durable_files import sync_names

STEP = re.compile(r"step_([0-9]{8,})(?:-[0-9]+)?")
_OLD = re.compile(r"\.old-([0-9]+)-[0-9a-f]+")
_LEFTOVER = re.compile(r"\.tmp-[0-9]+-[0-9a-f]+")


def candidates(folder: Path, up_to: int | None = None) -> list[Path]:
    """Directories that may hold a checkpoint, newest first; of one step the one in its place first."""
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {error.strerror}. Whether there are checkpoints cannot be seen: try again when it can be read."
        ) from error
    found = [(step_of(entry), bool(STEP.fullmatch(entry.name)), entry) for entry in entries]
    return [entry for step, _, entry in sorted(found, reverse=True) if step >= 0 and (up_to is None or step <= up_to)]


def why_absent(path: Path) -> str | None:
    """Why there can be no checkpoint at the path, with the ones beside it; None where there is a folder."""
    if path.is_dir():
        return None
    if os.path.lexists(path):
        return f"{path}: is no folder, and a checkpoint is one. Name the folder of a checkpoint or of a run."
    beside = sorted(one.name for one in candidates(path.parent) if STEP.fullmatch(one.name))
    if not beside:
        return f"{path}: there is no such folder. Name the folder of a checkpoint or of a run."
    shown = beside[0] if len(beside) == 1 else f"{beside[0]} to {beside[-1]}, {len(beside)} in all"
    return f"{path}: there is no such folder. {path.parent} has {shown}. Name one of them, or a run."


def step_of(path: Path) -> int:
    """The step in a directory's name; -1 for a name that no checkpoint has."""
    match = STEP.fullmatch(path.name) or _OLD.fullmatch(path.name)
    return int(match[1]) if match else -1


def place_of(folder: Path, step: int) -> Path:
    """The path for the checkpoint of a step: its own name, or the first free one where that must stay as it is."""
    own = folder / f"step_{step:08d}"
    names = itertools.chain([own], (own.with_name(f"{own.name}-{number}") for number in itertools.count(2)))
    return next(path for path in names if not os.path.lexists(path) or is_ours(path))


def is_ours(path: Path) -> bool:
    """Whether this version or an older one wrote it, and it can be read, though perhaps it is damaged.

    Others may be all that is left of a run: directories of a newer version, without a whole manifest, or unreadable
    just now. Only a person may remove them.
    """
    try:
        for name in read_manifest(path)["files"]:
            with contextlib.suppress(FileNotFoundError):
                os.close(os.open(path / name, os.O_RDONLY | os.O_NONBLOCK))
    except (CheckpointError, OSError):
        return False
    return True


def put_in_place(temporary: Path, path: Path) -> Path:
    """Give a finished directory its final name; an equal one that is there already stays."""
    aside = None
    if path.exists():
        if _is_same(path, temporary):
            return path
        aside = path.with_name(f".old-{step_of(path)}-{secrets.token_hex(4)}")
        os.rename(path, aside)
    os.rename(temporary, path)
    sync_names(path.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _is_same(path: Path, other: Path) -> bool:
    if not _is_whole(path):
        return False
    ours, theirs = read_manifest(path), read_manifest(other)
    return (ours["step"], ours["files"]) == (theirs["step"], theirs["files"])


def _is_whole(path: Path) -> bool:
    try:
        verify_files(path, read_manifest(path))
    except CheckpointError:
        return False
    return True


def set_later_aside(folder: Path, step: int) -> Path | None:
    """Move the checkpoints of later steps, the best ones too, from `folder` to `NAME.stale-N` beside it; None: none is.

    A run continues at an earlier step: the next start would otherwise take one of them for its newest.
    """
    later = [path for one in (folder, folder / "best") for path in candidates(one) if step_of(path) > step]
    if not later:
        return None
    aside = next(one for n in itertools.count(1) if not (one := folder.with_name(f"{folder.name}.stale-{n}")).exists())
    for path in later:
        place = aside / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, place)
    return aside


def recover(folder: Path) -> None:
    """Repair after a crash: put a directory that was set aside back, and remove leftovers."""
    for entry in list(folder.iterdir()):
        if _OLD.fullmatch(entry.name):
            path = place_of(folder, step_of(entry))
            if path.exists():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                os.rename(entry, path)
        elif _LEFTOVER.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but `newest`, which was just written, and the `keep - 1` others of the highest steps.

    Later ones that are damaged, which the run passed over when it began, do not count.
    """
    named = [path for path in candidates(folder) if path != newest and STEP.fullmatch(path.name)]
    others = [path for path in named if is_ours(path) and (step_of(path) < step_of(newest) or _is_whole(path))]
    for path in reversed(others[keep - 1 :]):
        # Renamed first: a directory that is half removed must not look like a checkpoint.
        doomed = path.with_name(f".tmp-{step_of(path)}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # the checkpoint is saved; an old one that stays is no failure of it
            os.rename(path, doomed)
            shutil.rmtree(doomed)

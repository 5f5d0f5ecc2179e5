"""The folder of checkpoints: one directory per saved step, each of which is there as a whole or not at all.

    step_00000120/        model.safetensors  optimizer.safetensors  values.json  MANIFEST.json
    .tmp-120-3fa8c1d2/    being written, or left by a crash: never read, removed at the next save
    .old-120-9be07a11/    the former step 120 while a new one takes its place: read only if a crash came just then
    step_00000120-2/      step 120, where this version cannot read `step_00000120` and therefore leaves it alone

All renames stay inside the folder, so each of them is atomic.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from largebatch.records.checkpoint.manifest import CheckpointError, read_manifest, verify_sizes
from largebatch.records.checkpoint.step_folders import place_of, prune, put_in_place, recover
from largebatch.records.checkpoint.writing import NotSavedError, check_contents, encode_values, write_directory


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and remove all but the newest ones. Call it on one rank.

    A crash at any moment leaves every earlier checkpoint valid, and this one either complete or invisible. If the same
    step is there already with the same content, it is left; otherwise the new one takes its place. What a newer version
    wrote, or cannot be read, stays as it is: it is neither removed nor counted nor replaced.

    Args:
        folder: holds the checkpoints of one run; made if absent.
        step: optimizer steps done, >= 0.
        tensors: groups of tensors; each becomes a file NAME.safetensors. Tensors of any device and layout in memory,
            views and tied ones too; a tied tensor is written once under each of its names.
        values: all other state, as plain JSON values: dict with str keys, list, str, int, float, bool, None.
        keep: how many checkpoints stay, >= 1: this one and the newest others.

    Returns:
        The directory of the checkpoint.

    Raises:
        ValueError: if an argument is not as described. Nothing is written.
        NotSavedError: if the disk refuses; the message has the bytes needed and free. Earlier checkpoints are intact.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step={step}, keep={keep}: a step is >= 0, and at least the newest checkpoint is kept.")
    check_contents(tensors, values)
    num_bytes = len(encode_values(values)) + sum(part.nbytes for group in tensors.values() for part in group.values())
    temporary = folder / f".tmp-{step}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        _check_space(folder, num_bytes)
        temporary.mkdir()
        try:
            write_directory(temporary, step=step, tensors=tensors, values=values)
            path = put_in_place(temporary, place_of(folder, step))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        prune(folder, path, keep)
    except (OSError, SafetensorError, MemoryError) as error:
        raise NotSavedError(
            f"The checkpoint of step {step} cannot be written to {folder}: {error}. "
            f"It needs {num_bytes:,} bytes; {_free_bytes(folder)} are free. Earlier checkpoints are intact. "
            "Make room, lower the number of checkpoints to keep, or choose another disk."
        ) from error
    return path


def is_on_disk(path: Path) -> bool:
    """Whether all files of a checkpoint exist with the sizes of its manifest; their contents are not checked."""
    try:
        verify_sizes(path, read_manifest(path))
    except CheckpointError:
        return False
    return True


def _check_space(folder: Path, num_bytes: int) -> None:
    usage = shutil.disk_usage(folder)
    # Before the first byte: a disk that is filled up to the last one loses the log of the run as well. Some network
    # file systems report a total of 0.
    if usage.total and usage.free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _free_bytes(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"

"""Reads checkpoints: one that is named, or the newest of a folder that is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from largebatch.records.checkpoint.manifest import (
    MANIFEST,
    TENSORS_SUFFIX,
    VALUES,
    CheckpointError,
    read_manifest,
    verify_files,
    verify_sizes,
)
from largebatch.records.checkpoint.reading import MOST_JSON_BYTES, brief, outline, parse_json, reason
from largebatch.records.checkpoint.step_folders import STEP, candidates, step_of, why_absent
from largebatch.records.regular_files import read_regular


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: groups of named tensors on the CPU, plain JSON values, and the versions that saved them."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)


Fits = Callable[[Checkpoint], None]
"""Raises CheckpointError for a checkpoint that is whole and still must not be used.

It is called twice: with tensors on the device "meta", before any byte of them is read, and with all of it.
"""


def verify_checkpoint(path: Path, fits: Fits | None = None) -> Checkpoint:
    """Check the checkpoint in the directory `path` to the last byte, without trusting any of it.

    Only regular files of the directory itself are read. Values are parsed after their bytes were verified, headers of
    tensors before, so that a file that says too much of itself is not read to its end.

    Returns:
        The checkpoint with its tensors on the device "meta": names, shapes and dtypes only.

    Raises:
        CheckpointError: if anything is missing, damaged, of a newer format, or refused by `fits`.
    """
    if STEP.fullmatch(path.name) and path.is_symlink():
        where = brief(os.readlink(path))
        raise CheckpointError(f"{path}: is a link, which may lead to another run. If you mean {where}, name that.")
    manifest = _manifest(path)
    verify_sizes(path, manifest)
    step = manifest["step"]
    named = STEP.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise CheckpointError(f"{path} holds step {step} by its manifest: give the directory its own name back.")
    values = _read_values(path, manifest["files"][VALUES]["sha256"])
    tensors = {}
    for name in manifest["files"]:
        if name.endswith(TENSORS_SUFFIX):
            try:
                tensors[name.removesuffix(TENSORS_SUFFIX)] = outline(path / name)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path / name}: {reason(error)}. Use an older checkpoint.") from error
    checkpoint = Checkpoint(path, step, tensors, values, manifest.get("versions", {}))
    if fits is not None:
        fits(checkpoint)
    verify_files(path, manifest)
    return checkpoint


def load_checkpoint(path: Path, fits: Fits | None = None) -> Checkpoint:
    """Read the checkpoint in the directory `path`, once it is verified; see `verify_checkpoint`.

    Raises:
        CheckpointError: if anything is missing, damaged, of a newer format, or refused by `fits`.
    """
    checkpoint = verify_checkpoint(path, fits)
    try:
        tensors = {group: load_file(path / f"{group}{TENSORS_SUFFIX}") for group in checkpoint.tensors}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: {error}. Its bytes are those of its manifest, so it was written wrong, by another program or by "
            "somebody else: use an older checkpoint."
        ) from error
    checkpoint = replace(checkpoint, tensors=tensors)
    if fits is not None:
        fits(checkpoint)
    return checkpoint


def newest_valid(
    *folders: Path, up_to: int | None = None, fits: Fits | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of `folders` that is whole, and why each newer one is not.

    Pointers and names do not count: directories are tried from the highest step down, `up_to` a step if it is given;
    of one step those of the first folder come first. None if no checkpoint is valid or there is none; a folder need not
    exist.

    Raises:
        CheckpointError: if a folder exists and cannot be read.
    """
    rejected: list[str] = []
    found = [entry for folder in folders for entry in candidates(folder, up_to)]
    for path in sorted(found, key=step_of, reverse=True):
        checkpoint = _load_or_reject(path, rejected, fits)
        if checkpoint is not None:
            return checkpoint, rejected
    return None, rejected


def find_valid(path: Path, fits: Fits | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint at a path, and why newer ones were passed over.

    The path of a checkpoint means that checkpoint. The folder of a run, or of checkpoints such as RUN/checkpoints/best,
    means its newest valid one; None if there is none.

    Raises:
        CheckpointError: if there is no folder, or the path is a checkpoint's and that is not whole, or cannot be read.
    """
    _require_folder(path)
    if path.name.startswith("step_") or os.path.lexists(path / MANIFEST):
        return load_checkpoint(path, fits), []
    return newest_valid(path if candidates(path) else path / "checkpoints", fits=fits)


def position_of(path: Path) -> tuple[int, int, dict[str, Any]]:
    """Step, samples seen and all values of the checkpoint in the directory `path`; its tensors are not read.

    Of the values, only the samples seen are checked; see `require_run_values`.

    Raises:
        CheckpointError: if its manifest or its values are missing or damaged, or it holds no run.
    """
    manifest = _manifest(path)
    values = _read_values(path, manifest["files"][VALUES]["sha256"])
    samples = values.get("samples_seen")
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0:
        raise CheckpointError(f"{path}: samples_seen={brief(samples)} is no position of a run. Use another checkpoint.")
    return manifest["step"], samples, values


def _require_folder(path: Path) -> None:
    if absent := why_absent(path):
        raise CheckpointError(absent)


def _manifest(path: Path) -> dict[str, Any]:
    _require_folder(path)
    return read_manifest(path)


def _read_values(path: Path, sha256: str) -> dict[str, Any]:
    try:
        data = read_regular(path / VALUES, most=MOST_JSON_BYTES, inside=path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(
                f"{path}: {VALUES} does not have the SHA-256 of the manifest. It is damaged: use an older checkpoint."
            )
        values = parse_json(data)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / VALUES}: {reason(error)}. Use an older checkpoint.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path / VALUES}: holds a {type(values).__name__}, not values under names.")
    return values


def _load_or_reject(path: Path, rejected: list[str], fits: Fits | None) -> Checkpoint | None:
    try:
        return load_checkpoint(path, fits)
    except CheckpointError as error:
        rejected.append(str(error))
        return None

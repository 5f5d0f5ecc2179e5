"""The manifest of a checkpoint: which files belong to it, and what every byte of them was.

No tensor format notices a flipped bit by itself: safetensors, `torch.load` and torch's distributed checkpoints all load
it silently. So a manifest is written last, with size and SHA-256 of each file and of itself, and checked before any
other file is parsed. It proves that the bytes are those that were saved, not who saved them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "MANIFEST.json"
VALUES = "values.json"
TENSORS_SUFFIX = ".safetensors"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # a file in the checkpoint's own directory and nowhere else


class CheckpointError(Exception):
    """A checkpoint cannot be written, or must not be used. The message names the file, the fact and the remedy."""


def build_manifest(directory: Path, *, step: int, names: Iterable[str]) -> dict[str, Any]:
    """The manifest of the files `names` in `directory`, as they are on disk now."""
    return {
        "format": FORMAT,
        "step": step,
        "versions": saved_versions(),
        "files": {name: _fingerprint(directory / name) for name in sorted(names)},
    }


def saved_versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    return {name: _version(name) for name in ("largebatch", "torch")}


def encode_manifest(body: dict[str, Any]) -> bytes:
    """The one spelling of a manifest, with its own SHA-256 in it."""
    digest = hashlib.sha256(_dump(body)).hexdigest()
    return _dump({**body, "sha256": digest})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `directory`, which is whole in itself; the files are not looked at.

    Raises:
        CheckpointError: if it is missing, is damaged by as little as one bit, or belongs to a newer format.
    """
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}. The manifest is written last, so this checkpoint is incomplete. "
            "Use an older checkpoint."
        ) from error
    try:
        body = json.loads(data)
        format_number = body["format"]
        body.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({error!r}). Use an older checkpoint.") from error
    if isinstance(format_number, int) and format_number > FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint has format {format_number}, and this version of largebatch reads up to {FORMAT}. "
            f"It was saved by {body.get('versions')}: upgrade largebatch."
        )
    # All bytes, not the digest alone: JSON has many spellings of one value, and a damaged file is not the one we write.
    if encode_manifest(body) != data:
        raise CheckpointError(f"{path}: damaged, it does not have its own SHA-256. Use an older checkpoint.")
    if not isinstance(body.get("step"), int) or VALUES not in body.get("files", ()):
        raise CheckpointError(f"{path}: it lists no step or no {VALUES}, so it is not ours. Use an older checkpoint.")
    return body


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Check every file that the manifest lists.

    Raises:
        CheckpointError: naming each file that is missing, of another size, or of another content.
    """
    faults = [_fault(directory, name, expected) for name, expected in manifest["files"].items()]
    if any(faults):
        told = "; ".join(fault for fault in faults if fault)
        raise CheckpointError(f"{directory}: {told}. It is damaged: use an older checkpoint.")


def _fault(directory: Path, name: str, expected: dict[str, Any]) -> str | None:
    if not PLAIN_NAME.fullmatch(name):
        return f"{name!r} is not the name of a file in it"
    try:
        size = (directory / name).stat().st_size
        if size != expected["size"]:
            return f"{name} has {size} bytes instead of {expected['size']}"
        if _fingerprint(directory / name) != expected:
            return f"{name} does not have the SHA-256 of the manifest"
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None


def _dump(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _fingerprint(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


@functools.cache  # a file of the package is searched for and parsed, and a run saves often
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""The manifest of a checkpoint: the files that belong to it, each with its size and SHA-256.

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

from largebatch.records.checkpoint.reading import brief, open_file, parse_json, reason, size_of
from largebatch.records.regular_files import read_regular

FORMAT = 1
MANIFEST = "MANIFEST.json"
VALUES = "values.json"
TENSORS_SUFFIX = ".safetensors"
_MOST_BYTES = 2**20
_MOST_OF_A_NAME = 255
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+!_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
    """The versions of the packages that decide the numbers of a run."""
    return {name: _version(name) for name in ("largebatch", "torch")}


def encode_manifest(body: dict[str, Any]) -> bytes:
    """The one spelling of a manifest, with its own SHA-256 in it."""
    digest = hashlib.sha256(_dump(body)).hexdigest()
    return _dump({**body, "sha256": digest})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The verified manifest of the checkpoint in `directory`; the files that it lists are not read.

    Raises:
        CheckpointError: if it is missing, is damaged by as little as one bit, or belongs to a newer format.
    """
    path = directory / MANIFEST
    try:
        data = read_regular(path, most=_MOST_BYTES, inside=directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path}: {error.strerror}. The manifest is written last, so this checkpoint is incomplete. "
            "Use an older checkpoint."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {reason(error)}. Use an older checkpoint.") from error
    try:
        body = parse_json(data)
        format_number = body["format"]
        body.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({reason(error)}). Use an older checkpoint.") from error
    if type(format_number) is int and format_number > FORMAT:
        raise CheckpointError(
            f"{path}: the checkpoint has format {brief(format_number)}, and this version of largebatch reads up to "
            f"{FORMAT}. It was saved by {brief(body.get('versions'))}: upgrade largebatch."
        )
    # All bytes, not the digest alone: JSON has many spellings of one value, and a damaged file is not the one we write.
    if encode_manifest(body) != data:
        raise CheckpointError(f"{path}: damaged, it does not have its own SHA-256. Use an older checkpoint.")
    if fault := _manifest_fault(body):
        raise CheckpointError(f"{path}: {fault}, so it is not ours. Use an older checkpoint.")
    return body


def _manifest_fault(body: dict[str, Any]) -> str | None:
    """The first fault of a manifest with a right SHA-256 of itself: anybody can compute that."""
    files, versions = body.get("files"), body.get("versions", {})
    if type(body.get("step")) is not int or not isinstance(files, dict) or VALUES not in files:
        return f"it lists no step or no {VALUES}"
    if type(body["format"]) is not int or body["format"] < 1 or not 0 <= body["step"] < 2**63:
        return f"it has format {brief(body['format'])} and step {brief(body['step'])}"
    if not isinstance(versions, dict) or not all(_is_version(version) for version in versions.values()):
        return f"its versions are {brief(versions)}"
    for name, known in files.items():
        if not PLAIN_NAME.fullmatch(name) or len(name) > _MOST_OF_A_NAME:
            return f"{brief(name)} is not the name of a file in it"
        if name != VALUES and not name.endswith(TENSORS_SUFFIX):
            return f"{brief(name)} is no file of a checkpoint"
        if not isinstance(known, dict) or known.keys() != {"size", "sha256"}:
            return f"its entry for {name} is {brief(known)}"
        if type(known["size"]) is not int or known["size"] < 0 or not _is_digest(known["sha256"]):
            return f"its entry for {name} is {brief(known)}"
    return None


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def verify_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """Check that every listed file is a regular one of its size; large files take no longer.

    Raises:
        CheckpointError: naming each file that is not.
    """
    _raise_faults(directory, [_size_fault(directory, name, known) for name, known in manifest["files"].items()])


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Check every byte of every file that the manifest lists.

    Raises:
        CheckpointError: naming each file that is missing, of another size, or of another content.
    """
    _raise_faults(directory, [_fault(directory, name, expected) for name, expected in manifest["files"].items()])


def _raise_faults(directory: Path, faults: list[str | None]) -> None:
    if any(faults):
        listed = "; ".join(fault for fault in faults if fault)
        raise CheckpointError(f"{directory}: {listed}. It is damaged: use an older checkpoint.")


def _size_fault(directory: Path, name: str, expected: dict[str, Any]) -> str | None:
    try:
        size = size_of(directory / name)
    except OSError as error:
        return f"{name}: {reason(error)}"
    except ValueError as error:  # has the name
        return reason(error)
    return None if size == expected["size"] else f"{name} has {size} bytes instead of {brief(expected['size'])}"


def _fault(directory: Path, name: str, expected: dict[str, Any]) -> str | None:
    if fault := _size_fault(directory, name, expected):
        return fault
    try:
        if _fingerprint(directory / name) != expected:
            return f"{name} does not have the SHA-256 of the manifest"
    except OSError as error:
        return f"{name}: {reason(error)}"
    except ValueError as error:  # has the name
        return reason(error)
    return None


def _dump(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


def _fingerprint(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open_file(path) as file:
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

"""The contents of a checkpoint directory, and how they are written to the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from largebatch.records.checkpoint.manifest import (
    MANIFEST,
    PLAIN_NAME,
    TENSORS_SUFFIX,
    VALUES,
    CheckpointError,
    build_manifest,
    encode_manifest,
)
from largebatch.records.durable_files import sync, sync_names, write_new


class NotSavedError(CheckpointError):
    """The checkpoint is not on the disk; earlier ones are intact."""


def check_contents(tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
    """Raise ValueError, before anything is written, for values that would not be read back as they are."""
    for group, named in tensors.items():
        if not PLAIN_NAME.fullmatch(group):
            raise ValueError(f"tensors[{group!r}]: the name of a file has letters, digits, '_', '-' and '.' only.")
        for name, tensor in named.items():
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype == torch.complex128:
                kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(
                    f"tensors[{group!r}][{name!r}] is a {kind}: safetensors stores dense tensors up to complex64. "
                    "Convert it, or put it into `values` if it is a plain value."
                )
    for fault in _not_plain(dict(values), "values"):
        raise ValueError(f"{fault}, not a plain JSON value: it would not come back as it is. Convert it before saving.")


def require_storable(tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> None:
    """Raise ValueError if the state would not be read back: tried on one number of each tensor, in memory."""
    check_contents(tensors, values)
    for group, named in tensors.items():
        few = {name: one.detach().reshape(-1)[:1] for name, one in named.items()}
        try:
            back = load(save(_separate(few)))
            lost = [name for name in few if name not in back or back[name].dtype != few[name].dtype]
        except Exception as error:
            lost = [f"{type(error).__name__}: {error}"]
        if lost:
            raise ValueError(f"tensors[{group!r}] would not come back from a safetensors file: {', '.join(lost)}.")


def _not_plain(value: Any, where: str) -> Iterator[str]:
    if type(value) is dict:
        for key, part in value.items():
            if type(key) is not str:
                yield f"{where} has the key {key!r}"
            yield from _not_plain(part, f"{where}[{key!r}]")
    elif type(value) is list:
        for index, part in enumerate(value):
            yield from _not_plain(part, f"{where}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        yield f"{where} is a {type(value).__name__}"


def encode_values(values: Mapping[str, Any]) -> bytes:
    """The file of the plain values. Floats come back bit for bit, NaN and the infinities too."""
    return (json.dumps(dict(values), indent=1) + "\n").encode()


def write_directory(
    directory: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
) -> None:
    """Write all files, the manifest last, each forced to disk before the next."""
    write_new(directory / VALUES, encode_values(values))
    mode = (directory / VALUES).stat().st_mode & 0o777
    names = [VALUES]
    for group, named in tensors.items():
        path = directory / f"{group}{TENSORS_SUFFIX}"
        save_file(_separate(named), path)
        path.chmod(mode)  # safetensors makes files that only their owner can read, whatever the umask
        sync(path)
        names.append(path.name)
    write_new(directory / MANIFEST, encode_manifest(build_manifest(directory, step=step, names=names)))
    sync_names(directory)


def _separate(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, and no two in one storage."""
    separate: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in named.items():
        # A conjugated or negated view has its sign in a flag, which a copy of the bytes would lose.
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage().data_ptr()
        if storage in storages:
            plain = plain.clone()
        storages.add(storage)
        separate[name] = plain
    return separate

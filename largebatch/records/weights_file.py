"""Reads weights that a run may start from: files of torch and safetensors, checkpoints, folders of transformers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from largebatch.distributed.checksums import tensors_sha256
from largebatch.records.checkpoint import CheckpointError, find_valid
from largebatch.records.regular_files import printable

# Entries under which a program saves its weights beside other things, the first that is there counts.
_ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class FoundWeights:
    """Weights of a file or folder.

    Attributes:
        tensors: by name, on the CPU.
        sha256: of names, shapes and values, whatever the format of the file.
        notes: choices that were made on the way, a clause each.
    """

    tensors: dict[str, Tensor]
    sha256: str
    notes: tuple[str, ...] = ()


def read_weights(path: Path, entry: str | None = None) -> FoundWeights:
    """The weights at a path.

    Args:
        path: a file of safetensors or of torch.save; a checkpoint of ours, or a run, of which the newest valid one is
            taken; or a folder of transformers, its shards included. No code of a file is run (`weights_only`).
        entry: which part: of a file of torch the key of a dict, of a checkpoint a group of tensors, such as `ema`.
            None: the weights, found under the names that programs use.

    Raises:
        ValueError: if there are none, or the file is damaged, or holds more than tensors and plain values.
    """
    if not path.exists():
        raise ValueError(f"there is no file or folder {printable(path)}")
    try:
        found, notes = _of_folder(path, entry) if path.is_dir() else _of_file(path, entry)
    except (CheckpointError, OSError, SafetensorError) as error:
        raise ValueError(str(error).rstrip(".")) from None
    tensors = {str(name): one.detach() for name, one in found.items() if isinstance(one, Tensor)}
    if not tensors:
        raise ValueError(f"{printable(path)} holds no tensors under names, but {_outline(found)}")
    if len(tensors) < len(found):
        notes = [*notes, f"{len(found) - len(tensors)} entries that are no tensors were left out"]
    return FoundWeights(tensors, tensors_sha256(tensors.items()), tuple(notes))


def _of_folder(path: Path, entry: str | None) -> tuple[Mapping[Any, Any], list[str]]:
    for name in _HUGGING_FACE:
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            parts = [_of_file(path / Path(shard).name, entry)[0] for shard in shards]
            return {key: one for part in parts for key, one in part.items()}, [f"from {len(parts)} files"]
        if (path / name).is_file() and not (path / "MANIFEST.json").exists():
            return _of_file(path / name, entry)
    checkpoint, passed_over = find_valid(path)
    if checkpoint is None:
        raise ValueError(
            " ".join([f"{printable(path)} holds no checkpoint, and none of {', '.join(_HUGGING_FACE)}", *passed_over])
        )
    group = entry or "model"
    if group not in checkpoint.tensors:
        raise ValueError(f"{printable(checkpoint.path)} holds {', '.join(checkpoint.tensors)}, and no {group}")
    notes = [f"{group} of {printable(checkpoint.path.name)}", *(f"passed over: {one}" for one in passed_over)]
    return {**checkpoint.tensors.get("model", {}), **checkpoint.tensors[group]}, notes


def _of_file(path: Path, entry: str | None) -> tuple[Mapping[Any, Any], list[str]]:
    if path.suffix == ".safetensors":
        if entry is not None:
            raise ValueError(f"{printable(path)} has tensors alone, and no entry {entry}")
        return load_file(path), []
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{printable(path)} is no file of tensors and plain values ({first}): a pickle may run any code, so it is "
            "not opened. Save model.state_dict() alone, best as safetensors"
        ) from None
    except (RuntimeError, EOFError, KeyError, AttributeError) as error:
        raise ValueError(f"{printable(path)} is damaged, or not written by torch.save: {error}") from None
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{printable(path)} holds a {type(loaded).__name__}, not tensors under names")
    return _entry_of(path, loaded, entry)


def _entry_of(path: Path, loaded: Mapping[Any, Any], entry: str | None) -> tuple[Mapping[Any, Any], list[str]]:
    inner = {str(name): one for name, one in loaded.items() if isinstance(one, Mapping) and one}
    if entry is not None:
        if entry not in inner:
            raise ValueError(f"{printable(path)} has no entry {entry}: it holds {_outline(loaded)}")
        return inner[entry], [f"its entry {entry}"]
    found = next((name for name in _ENTRIES if name in inner), None)
    if found is None or any(isinstance(one, Tensor) for one in loaded.values()):
        return loaded, []
    return inner[found], [f"its entry {found}" + (f" (it holds {_outline(loaded)})" if len(loaded) > 1 else "")]


def _outline(found: Mapping[Any, Any]) -> str:
    names = [f"{printable(name)} ({type(one).__name__})" for name, one in found.items()]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"

"""Reads the files of a checkpoint without trusting them: regular files, strict JSON, headers before bytes."""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from largebatch.records.regular_files import open_regular, printable

MOST_JSON_BYTES = 2**26  # a run of 100,000 parameter tensors has a quarter of it
_MOST_LEVELS = 100
_MOST_LETTERS = 300
_SPARSE_FROM, _SPARSEST = 2**30, 1000  # a file of this size, of which less than one byte in so many is on the disk
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def open_file(path: Path) -> BinaryIO:
    """Open a file of a checkpoint; a link must not lead out of the checkpoint's directory.

    Raises:
        OSError, ValueError: as `open_regular`.
    """
    return open_regular(path, inside=path.parent)


def size_of(path: Path) -> int:
    """Bytes of a regular file.

    Raises:
        OSError, ValueError: as `open_file`; or nearly all of it is a hole, which takes hours to read and was not saved.
    """
    with open_file(path) as file:
        found = os.fstat(file.fileno())
    on_disk = found.st_blocks * 512
    if found.st_size > _SPARSE_FROM and on_disk * _SPARSEST < found.st_size:
        raise ValueError(f"{path.name} has {found.st_size:,} bytes, of which only {on_disk:,} are on the disk")
    return found.st_size


def parse_json(data: bytes) -> Any:
    """The value that JSON text stands for.

    Raises:
        ValueError: if it is no JSON in UTF-8, has a key twice in one object, or is nested deeper than 100 levels.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"nested deeper than {_MOST_LEVELS} levels") from None
    level, depth = [value], 0
    while level := [part for one in level for part in _parts(one)]:
        depth += 1
        if depth > _MOST_LEVELS:
            raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
    return value


def outline(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes by the header of a safetensors file, as tensors without storage.

    The library holds the header against the size of the file: no tensor lies outside, none overlaps another.

    Raises:
        ValueError: if the header lies, or names a dtype that no checkpoint has.
        OSError: if the file cannot be read.
    """
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_JSON_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and at most {MOST_JSON_BYTES:,} are read")
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: torch.empty(one.get_shape(), dtype=_dtype(name, one.get_dtype()), device="meta")
                for name, one in slices.items()
            }
    except (SafetensorError, RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"no safetensors file ({' '.join(str(error).split())})") from error


def brief(value: Any) -> str:
    """A value of a checkpoint for messages: short, on one line, without control characters.

    >>> brief("a" * 1000), brief({"x": [1] * 9})
    ("'aaaaaaaaaaaa...aaaaaaaaaaaaa'", "{'x': [1, 1, 1, 1, 1, 1, ...]}")
    """
    return reprlib.repr(value)


def plain(value: Any) -> str:
    """The same as `brief`, but a short text stands without quotes."""
    text = printable(value) if isinstance(value, str) else brief(value)
    return text if len(text) <= _MOST_LETTERS else brief(value)


def reason(error: Exception) -> str:
    """The message of a reading error, without the system's error number."""
    return printable(" ".join(str(getattr(error, "strerror", None) or error).split())).rstrip(".")[:_MOST_LETTERS]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {brief(next(name for name in names if names.count(name) > 1))} is there twice")
    return values


def _parts(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in parts if isinstance(part, (dict, list))]


def _dtype(name: str, text: str) -> torch.dtype:
    if text not in _DTYPES:
        raise TypeError(f"{brief(name)} has the dtype {brief(text)}")
    return _DTYPES[text]

"""Files that the model's section of a config names: a run that was moved has the same ones elsewhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

_HASHED_BYTES = 2**20  # of each file; the size stands for the rest


def files_named(section: dict[str, Any]) -> dict[str, str]:
    """For each value of a section that is an existing path: a hash of the sizes and first bytes of its files."""
    return {
        key: _files_sha256(Path(value))
        for key, value in section.items()
        if isinstance(value, str) and value and os.path.exists(value)
    }


def _files_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        with file.open("rb") as opened:
            start = opened.read(_HASHED_BYTES)
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode() + start)
    return digest.hexdigest()[:16]


def at_home(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A saved identity with this machine's paths, for paths that hold the same files: the run was moved."""
    were, now = saved.get("model_files") or {}, given["model_files"]
    moved = {key: given["model"][key] for key in were.keys() & now.keys() if were[key] == now[key]}
    return saved | {"model": saved["model"] | moved, "model_files": None}

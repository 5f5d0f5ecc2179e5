"""The record of a study on disk: a row per finished run, which a kill at any moment leaves whole."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from largebatch.config import ConfigError
from largebatch.durable_files import write_record
from largebatch.line_file import LineFile
from largebatch.study.protocol import Row

SETTINGS = "study_settings.json"


class Journal:
    """Reads the rows of all shares and appends those of one; a context manager that holds the share.

    Args:
        folder: of the study.
        share, shares: which part of it this process works on.

    Raises:
        ConfigError: on entering, if another process holds the share.
    """

    def __init__(self, folder: Path, *, share: int, shares: int) -> None:
        self.folder = folder
        self._path = folder / ("trials.jsonl" if shares == 1 else f"trials.share{share}of{shares}.jsonl")
        self._lines = LineFile(self._path)

    def __enter__(self) -> Journal:
        try:
            fcntl.flock(self._lines.descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lines.close()
            raise ConfigError(
                [f"{self._path}: another process writes to it. Wait for it, or give every process its own study.share."]
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    def append(self, row: Row) -> None:
        """Write a row; it is on the disk when this returns."""
        self._lines.append(json.dumps(row, allow_nan=False).encode())
        self._lines.sync()

    def rows(self) -> list[Row]:
        """Finished runs of all shares; a line torn by a kill is none."""
        found: dict[str, Row] = {}
        for path in sorted(self.folder.glob("trials*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                found.setdefault(row["id"], row)
        return list(found.values())


def require_same_study(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what a new study is; go on with an old one only if what it shares with this one is the same.

    Batch sizes, optimizers and seeds may come and go, and trials may be added: finished runs stay what they are. Fewer
    trials would be another study: which of them were stopped early depends on all that came before.

    Args:
        folder: of the study.
        identity: `trials`, their number; `study`, what is asked of every run; `optimizers`, the config of each.

    Raises:
        ConfigError: with every setting that has changed, or if the folder holds something else.
    """
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError([f"run.dir={folder}: holds something that is no study. Name another folder."])
        write_record(path, identity)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    shared = before["optimizers"].keys() & identity["optimizers"].keys()
    parts = [(before["study"], identity["study"])]
    parts += [(before["optimizers"][name], identity["optimizers"][name]) for name in sorted(shared)]
    changed = [line for old, new in parts for line in _changes(folder, _flat(old), _flat(json.loads(json.dumps(new))))]
    if before["trials"] > identity["trials"]:
        changed.append(
            f"study.trials={identity['trials']}: {folder} was begun with {before['trials']}, and which of them were "
            "stopped early depends on all. Keep as many or more, or name another run.dir."
        )
    if changed:
        raise ConfigError(list(dict.fromkeys(changed)))
    write_record(path, {**identity, "optimizers": before["optimizers"] | identity["optimizers"]})


def _changes(folder: Path, before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{key}={now.get(key, 'nothing')}: was {before.get(key, 'nothing')} when {folder} was begun. Set it back, or "
        "name another run.dir."
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = [_flat(part, f"{prefix}.{key}" if prefix else str(key)) for key, part in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {prefix: json.dumps(value)}

"""The record of a study on disk: a row per finished run, which a kill at any moment leaves whole."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from largebatch.diagnostics.settings import PositiveInt
from largebatch.experiments.study.protocol import Row
from largebatch.records.checkpoint.reading import parse_json, plain, reason
from largebatch.records.checkpoint.run_values import Count, Finite
from largebatch.records.durable_files import write_record
from largebatch.records.flat_config import flat
from largebatch.records.line_file import LineFile
from largebatch.records.regular_files import read_regular
from largebatch.records.renamed import with_new_names
from largebatch.records.rows.row_file import MOST_BYTES, read_lines
from largebatch.run.config.reading import ConfigError

SETTINGS = "study_settings.json"
_FOLLOWING = {f"scaling.{name}" for name in ("momentum", "betas", "eps", "clip_norm")}
_SET_BACK = "Nothing but the rate followed the batch by itself then: study.joint_scaling=false goes on so"


class Journal:
    """Reads the rows of all shares and appends those of one; a context manager that holds the share.

    Args:
        folder: of the study.
        share, shares: the part of it that this process works on.

    Attributes:
        passed_over: lines that the last call of `rows` could not use, one text each.

    Raises:
        ConfigError: on entering, if another process holds the share.
    """

    def __init__(self, folder: Path, *, share: int, shares: int) -> None:
        self.folder = folder
        self._path = folder / ("trials.jsonl" if shares == 1 else f"trials.share{share}of{shares}.jsonl")
        self.passed_over: list[str] = []
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
        """Finished runs of all shares; lines that are no row of a trial go to `passed_over`."""
        found: dict[str, Row] = {}
        self.passed_over = []
        for path in sorted(self.folder.glob("trials*.jsonl")):
            try:
                for line in read_lines(path, inside=self.folder):
                    if line.row is None:
                        continue  # torn by a kill
                    if fault := _fault_of(line.row):
                        self.passed_over.append(f"{path}, line {line.number}: {fault}")
                    else:
                        found.setdefault(str(line.row["id"]), line.row)
            except (OSError, ValueError) as error:
                self.passed_over.append(f"{path}: {reason(error)}")
        return list(found.values())


class _Trial(BaseModel):
    """A row of trials.jsonl: a run that has ended."""

    model_config = ConfigDict(strict=True, extra="allow")

    id: str
    cell: str
    optimizer: str
    batch_size: PositiveInt
    number: Count
    seed: Count
    setting: dict[str, Finite]
    status: Literal["reached", "beaten", "budget", "hopeless", "diverged"]
    steps: Count
    noise_scale: dict[Literal["value", "low", "high"], Finite] | None = None
    optimizer_noise_scale: dict[Literal["value", "low", "high"], Finite] | None = None
    run: str

    @model_validator(mode="after")
    def _named_alike(self) -> _Trial:
        if (self.cell, self.id, self.run) != (
            f"{self.optimizer}_b{self.batch_size}",
            f"{self.cell}_t{self.number}_s{self.seed}",
            f"runs/{self.id}",
        ):
            raise ValueError("id, cell and run are not those of its optimizer, batch size, number and seed")
        return self


def _fault_of(row: Row) -> str | None:
    """The first fault of a row of a trial."""
    try:
        _Trial.model_validate(row)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        key = plain(".".join(map(str, fault["loc"]))) or "the row"
        return f"{key}: {fault['msg'].removeprefix('Value error, ')}"
    return None


class _Begun(BaseModel):
    """The identity of a study at its start."""

    model_config = ConfigDict(strict=True, extra="allow")

    trials: PositiveInt
    study: dict[str, Any]
    optimizers: dict[str, dict[str, Any]]


def require_same_study(
    folder: Path, identity: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Record the identity of a new study; continue an old one only if their common settings agree.

    Batch sizes, optimizers and seeds may change, and trials may be added: finished runs stay valid. Fewer trials would
    be another study: early stopping depends on all trials before.

    Args:
        folder: of the study.
        identity: `trials`, their number; `study`, the requirements of every run; `optimizers`, the config of each.
        defaults: of each optimizer the config that nobody has changed. A key that a study lacks is newer than the
            study, and its default keeps what was before.

    Raises:
        ConfigError: with every setting that has changed, or if the folder holds something else.
    """
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError([f"run.dir={folder}: holds something that is no study. Name another folder."])
        write_record(path, identity)
        return
    before = _begun(path)
    shared = before["optimizers"].keys() & identity["optimizers"].keys()
    parts: list[tuple[Any, Any, Mapping[str, Any]]] = [(before["study"], identity["study"], {})]
    parts += [
        (before["optimizers"][name], identity["optimizers"][name], (defaults or {}).get(name, {}))
        for name in sorted(shared)
    ]
    changed = [line for old, new, usual in parts for line in _changes(folder, *map(_texts, (old, new, usual)))]
    if before["trials"] > identity["trials"]:
        changed.append(
            f"study.trials={identity['trials']}: {folder} was begun with {before['trials']}, and early stopping "
            "depended on all of them. Keep as many or more, or name another run.dir."
        )
    if changed:
        raise ConfigError(list(dict.fromkeys(changed)))
    write_record(path, {**identity, "optimizers": before["optimizers"] | identity["optimizers"]})


def _begun(path: Path) -> dict[str, Any]:
    try:
        before = parse_json(read_regular(path, most=MOST_BYTES, inside=path.parent))
        _Begun.model_validate(before)
    except (OSError, ValueError) as error:
        fault = (
            f"{len(error.errors())} of its values are wrong" if isinstance(error, ValidationError) else reason(error)
        )
        raise ConfigError(
            [f"{path}: {fault}, so the settings that the study began with are not known. Name another run.dir."]
        ) from None
    assert isinstance(before, dict)
    return before | {"optimizers": {name: with_new_names(one) for name, one in before["optimizers"].items()}}


def _changes(folder: Path, before: dict[str, str], now: dict[str, str], defaults: dict[str, str]) -> list[str]:
    newer = {key for key in now.keys() - before.keys() if now[key] == defaults.get(key)}
    return [
        f"{key}={now.get(key, 'nothing')}: was {before.get(key, 'nothing')} when {folder} was begun. "
        f"{_SET_BACK if key in _FOLLOWING else 'Set it back'}, or name another run.dir."
        for key in sorted({*before, *now} - newer)
        if before.get(key) != now.get(key)
    ]


def _texts(values: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in flat(json.loads(json.dumps(values))).items()}

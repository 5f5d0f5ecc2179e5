"""The folder of a run: its inputs, its environment, and the path of each record."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from largebatch.records.durable_files import as_not_written, require_regular, where_is, write_whole

_PACKAGES = ("largebatch", "torch", "accelerate", "hydra-core", "omegaconf", "numpy", "wandb", "safetensors")


@dataclass
class RunFolder:
    """Paths inside a run's folder, and who writes there.

    Attributes:
        path: the folder's; another one where `follow` has found it renamed.
        come_back: called with the path when `follow` has made a removed folder anew, to restore files that were open.
        force: force rows to the disk before each checkpoint, so that no loss of power leaves it without them.
    """

    path: Path
    come_back: list[Callable[[Path], object]] = field(default_factory=list, repr=False)
    force: list[Callable[[], object]] = field(default_factory=list, repr=False)
    _inputs: dict[str, str] = field(default_factory=dict, repr=False)
    _held: int = field(default=-1, repr=False)

    @property
    def metrics(self) -> Path:
        """One JSON object per row: the record of truth."""
        return self.path / "metrics.jsonl"

    @property
    def history(self) -> Path:
        """One JSON object per start: from which step, on how many processes, with which changes."""
        return self.path / "history.jsonl"

    @property
    def ledger(self) -> Path:
        """One JSON object per optimizer step, to compare runs by."""
        return self.path / "ledger.jsonl"

    @property
    def layers(self) -> Path:
        """One JSON object per measurement of all layers."""
        return self.path / "layers.jsonl"

    @property
    def skipped(self) -> Path:
        """One JSON object per sample that could not be loaded."""
        return self.path / "skipped.jsonl"

    @property
    def summary(self) -> Path:
        """The results, written at the end."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """`step_XXXXXXXX` folders."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """PNG files."""
        return self.path / "plots"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has written here."""
        return self.metrics.exists() or self.checkpoints.exists()

    def write_inputs(self, *, config_yaml: str, overrides: Sequence[str], plan: dict[str, Any]) -> None:
        """Write config.yaml, overrides.txt, plan.json and environment.json, and begin to watch the folder.

        Raises:
            OSError: if one cannot be written, or a record that the run will write is something else than a file.
        """
        self._inputs = {
            "config.yaml": config_yaml,
            "overrides.txt": "".join(f"{override}\n" for override in overrides),
            "plan.json": _json(plan),
            "environment.json": _json(environment()),
        }
        for record in (self.metrics, self.history, self.ledger, self.layers, self.skipped, self.summary):
            require_regular(record)
        self._write_inputs()

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write plan.json anew with these entries, for a run that has changed its plan; all others stay.

        Raises:
            OSError: if it cannot be written.
        """
        self._inputs["plan.json"] = _json(json.loads(self._inputs["plan.json"]) | plan)
        write_whole(self.path / "plan.json", self._inputs["plan.json"])

    def force_rows(self) -> None:
        """Force what `force` names to the disk, before a checkpoint gets its name."""
        for force in self.force:
            force()

    def write_summary(self, summary: dict[str, Any], problems: list[str]) -> None:
        """Write summary.json, with the problems of the run; where the disk refuses, that is one more of them."""
        try:
            write_whole(self.summary, _json(summary | {"problems": problems}))
        except OSError as error:
            problems.append(f"summary.json was not written: {error}")

    def follow(self) -> str | None:
        """Notice that somebody renamed or removed the folder while the run writes to it.

        A renamed one goes on where it is. A removed one is made anew, with its inputs and what `come_back` brings.

        Returns:
            A sentence on the change; None without one.

        Raises:
            OSError: if it cannot be made anew; it is tried again with the next call.
            FolderInUseError: if another run has begun in its place.
        """
        if self._held < 0:
            return None
        was, now = self.path, where_is(self._held, self.path)
        if now == was:
            return None
        if now is not None:
            self.path = now
            return f"{was} was renamed: it is {now} now, and everything goes on there"
        self.path.mkdir(parents=True, exist_ok=True)
        for come_back in self.come_back:
            come_back(self.path)
        self._write_inputs()
        return f"{was} was removed: it is made anew with config and rows; checkpoints and other files in it are gone"

    def leave(self) -> None:
        """Watch the folder no more."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _write_inputs(self) -> None:
        for name, text in self._inputs.items():
            write_whole(self.path / name, text)
        self.leave()
        self._held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def chosen_folder(given: str | None, root: str, name: str) -> Path:
    """The folder that was given, made by whoever writes to it; none: a new one, see `new_folder`."""
    return Path(given) if given else new_folder(root, name)


def new_folder(root: str, name: str) -> Path:
    """A new folder under `root`: ROOT/NAME/DATE_TIME, made unique by a number if need be.

    It is made here, so that of two that ask in the same second, on whatever machines, each gets its own.

    Raises:
        OSError: if it cannot be made.
    """
    stem = Path(root) / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    with as_not_written(stem.parent):
        stem.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = stem if number == 1 else stem.with_name(f"{stem.name}_{number}")
        with as_not_written(path), contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there is no last number")


def environment() -> dict[str, Any]:
    """Versions and machine. No variables, no command line, no user or host name: those can hold secrets."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


@functools.cache  # of a study, every run asks
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

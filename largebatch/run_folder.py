"""The folder of a run: what was asked for, on what, and where each record goes."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("largebatch", "torch", "accelerate", "hydra-core", "omegaconf", "numpy", "wandb", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

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
        """Write config.yaml, overrides.txt, plan.json and environment.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(config_yaml, encoding="utf-8")
        (self.path / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides), encoding="utf-8")
        self._write_json("plan.json", plan)
        self._write_json("environment.json", environment())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        self._write_json("summary.json", summary)

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def new_folder(root: str, name: str) -> Path:
    """A path under `root` that does not exist yet: ROOT/NAME/DATE_TIME, made unique by a number if need be."""
    stem = Path(root) / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}_{number}")
    return path


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

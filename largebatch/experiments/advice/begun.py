"""The settings that a folder of advice was begun with: going on needs the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch.records.durable_files import write_record
from largebatch.records.flat_config import flat
from largebatch.records.report.run_files import read_json
from largebatch.run.config.reading import ConfigError

SETTINGS = "advise_settings.json"
_MAY_CHANGE = ("run.", "logger.", "launcher.", "cost.", "advise.")


def require_same_advice(folder: Path, config: Mapping[str, Any]) -> None:
    """Record the config of new advice; go on with old one only if its runs would be the same.

    Budget, candidates, seeds and measurements may change: finished runs stay valid.

    Raises:
        ConfigError: with every setting that has changed, or if the folder holds something else.
    """
    path, now = folder / SETTINGS, _compared(config)
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError([f"run.dir={folder}: holds something that is no advice. Name another folder."])
        write_record(path, now)
        return
    try:
        before = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: {error}, so what it was begun with is not known. Name another run.dir."]) from None
    changed = [
        f"{key}={now[key]}: was {before[key]} when {folder} was begun. Set it back, or name another run.dir."
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key]
    ]
    if changed:
        raise ConfigError(changed)


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in flat(config).items() if not key.startswith(_MAY_CHANGE)}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain

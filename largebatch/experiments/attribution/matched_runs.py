"""Makes the runs of an attribution that are still missing; a run that has ended is kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from largebatch.experiments.attribution.corners import Corner, Design
from largebatch.experiments.attribution.settings import AttributionConfig
from largebatch.records.checkpoint.reading import parse_json, reason
from largebatch.records.durable_files import write_record
from largebatch.records.flat_config import changed_keys, flat
from largebatch.records.regular_files import read_regular
from largebatch.records.rows.row_file import MOST_BYTES
from largebatch.records.run_folder import RunFolder
from largebatch.run.config.reading import ConfigError, public_values
from largebatch.run.train_quietly import train_quietly

SETTINGS = "attribution_settings.json"
# Sections that do not change what a run computes, or that the experiment sets.
_LOCAL = ("run", "logger", "launcher", "seed", "cost")
_OF_READING = ("seeds", "orders", "metric")  # of the section `attribute`: which runs there are, and what is read
_ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        value: of the metric at the end; NaN if it diverged.
        folder: relative to the experiment's.
    """

    value: float
    folder: str


def require_same_attribution(folder: Path, config: DictConfig, options: AttributionConfig) -> None:
    """Record the settings of a new experiment, or refuse to continue one with others.

    Seeds, orders and the metric may change: they use the same runs. Only rank 0 writes, and only it refuses a folder
    that holds something else: the others may look while it writes.

    Raises:
        ConfigError: with every setting that has changed, or if the folder holds something else.
    """
    asked = {key: value for key, value in public_values(config).items() if key not in _LOCAL}
    asked["attribute"] = options.model_dump(exclude=set(_OF_READING))
    path, is_main = folder / SETTINGS, os.environ.get("RANK", "0") == "0"
    if path.exists():
        before, now = _texts(_begun(path)), _texts(asked)
        for key in _OF_READING:  # recorded by earlier versions
            before.pop(f"attribute.{key}", None)
        if changed := changed_keys(before, now):
            raise ConfigError(
                [
                    f"{key}={now.get(key, 'nothing')}: was {before.get(key, 'nothing')} when {folder} was begun. Set "
                    "it back, or name another run.dir."
                    for key in changed
                ]
            )
    elif is_main and folder.exists() and any(folder.iterdir()):
        raise ConfigError([f"run.dir={folder}: holds something that is no attribution. Name another folder."])
    elif is_main:
        write_record(path, asked)


def make_matched_runs(
    design: Design,
    config: DictConfig,
    options: AttributionConfig,
    folder: Path,
    *,
    first_seed: int,
    stop: Callable[[], bool],
    on_run: Callable[[Corner, int, float], object],
) -> Mapping[tuple[Corner, int], Ended] | None:
    """Train what is missing, on all ranks of the launcher together.

    Args:
        design: the runs.
        config: of `largebatch train`, with the large batch.
        options: the section `attribute`.
        folder: of the experiment; the same on all ranks.
        first_seed: seeds are this and the following ones.
        stop: whether to end the present run after its step.
        on_run: called with each run that has ended: corner, seed, value.

    Returns:
        how each (corner, seed) ended; None if a stop was asked for.
    """
    found: dict[tuple[Corner, int], Ended] = {}
    for seed in range(first_seed, first_seed + options.seeds):
        for corner in design.runs:
            relative = f"runs/{corner.name}_s{seed}"
            value = _value_of(folder / relative, options.metric)
            if value is None:
                run_config = design.config_of(corner, config, options, seed=seed)
                # From where a stop left it; nothing is removed, as another rank may be looking at it.
                OmegaConf.update(run_config, "resume", "auto")
                trained = train_quietly(run_config, folder / relative, stop=stop)
                if trained.status not in _ENDED:
                    return None
                value = _value_of(trained.folder, options.metric)
                assert value is not None, "a run that has ended has a summary"
                on_run(corner, seed, value)
            found[corner, seed] = Ended(value, relative)
    return found


def _value_of(folder: Path, metric: str) -> float | None:
    """The metric at the end of a run, NaN if it diverged; None if it has not ended.

    Raises:
        ConfigError: if the run ended without the metric.
    """
    try:
        summary = json.loads(RunFolder(folder).summary.read_text(encoding="utf-8"))
        status = summary["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if status not in _ENDED:
        return None
    if status == "diverged":
        return math.nan
    if not isinstance(value := summary.get(metric), (int, float)):
        raise ConfigError([f"attribute.metric={metric}: {folder} ended without it. Choose a metric of the task."])
    return float(value)


def _begun(path: Path) -> dict[str, Any]:
    try:
        before = parse_json(read_regular(path, most=MOST_BYTES, inside=path.parent))
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"{path}: {reason(error)}, so the settings that it began with are not known. Name another run.dir."]
        ) from None
    if not isinstance(before, dict):
        raise ConfigError([f"{path}: is no object, so it is no record of settings. Name another run.dir."])
    return before


def _texts(values: Any) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in flat(json.loads(json.dumps(values))).items()}

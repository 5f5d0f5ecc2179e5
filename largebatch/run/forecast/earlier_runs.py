"""Reads earlier runs cheaply: two small files each, of the newest ones, whatever else lies in the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from largebatch.diagnostics.predictions.grades import Grade
from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import MEASURED, ends_of, grades_in, positive
from largebatch.records.regular_files import printable, read_regular
from largebatch.run.forecast.conditions import SEED

MOST_RUNS = 48  # newest ones that are read
MOST_FOLDERS = 1000  # that are looked into for a run
_MOST_ENTRIES = 20_000  # of the folder
_MOST_BYTES = 2**20
_MOST_NAMED = 20  # broken runs


@dataclass(frozen=True)
class EarlierRun:
    """What a run left that predicts another one.

    Attributes:
        name: of its folder.
        seed: of the run; None: not known.
        conditions: as `conditions` gave them.
        global_batch_size: in samples.
        num_samples: of its training set.
        shape: how a rank's part of the batch was cut up.
        measured: of summary.json, numbers above 0.
        ends: what it ended with, as `ends_of`; empty of a run that has not finished.
        grades: of its own predictions.
    """

    name: str
    seed: str | None
    conditions: Mapping[str, Any]
    global_batch_size: int
    num_samples: int
    shape: Shape
    measured: Mapping[str, float]
    ends: Mapping[str, float]
    grades: tuple[Grade, ...]


@dataclass(frozen=True)
class Earlier:
    """Earlier runs, oldest first; those that could not be read, each with its reason; how many were not looked at."""

    runs: list[EarlierRun] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    num_more: int = 0


def read_earlier(folder: Path, own: Path) -> Earlier:
    """The newest runs whose folders lie in `folder`, without the run's own. A broken one is named, not raised.

    Cost: a list of the folder, one look into each of `MOST_FOLDERS` folders at most, and two files of each of the
    newest `MOST_RUNS` runs.
    """
    found: list[tuple[float, str]] = []
    own_path, here = os.path.realpath(own), os.path.realpath(folder)
    try:
        with os.scandir(folder) as entries:
            listed = list(islice(entries, _MOST_ENTRIES + 1))
        folders = [one for one in listed if one.is_dir(follow_symlinks=False)]
        for entry in folders[:MOST_FOLDERS]:
            if os.path.join(here, entry.name) != own_path:  # a run of the same name elsewhere is another one
                ended = _modified(f"{entry.path}/summary.json")
                found += [] if ended is None else [(ended, entry.name)]
    except OSError as error:
        return Earlier(left_out=[f"{folder.name}: {error.strerror or error}"])
    found.sort()
    earlier = Earlier(num_more=max(len(found) - MOST_RUNS, 0))
    if len(folders) > MOST_FOLDERS or len(listed) > _MOST_ENTRIES:
        looked = min(len(folders), MOST_FOLDERS)
        earlier.left_out.append(printable(f"{folder.name}: has more entries; {looked} folders of it were looked into"))
    for _, name in found[-MOST_RUNS:]:
        try:
            run = read_earlier_run(folder / name)
        except (OSError, ValueError) as error:
            if len(earlier.left_out) < _MOST_NAMED:
                earlier.left_out.append(printable(f"{name}: {error}".partition("\n")[0])[:200])
            continue
        if run is not None:
            earlier.runs.append(run)
    return earlier


def _modified(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:  # no run, one that goes on, or one that was killed
        return None


def read_earlier_run(folder: Path) -> EarlierRun | None:
    """One run; None if it has nothing to predict from: of an older version, or with a batch that changes.

    Raises:
        OSError, ValueError: if its files are broken.
    """
    if not os.path.lexists(folder / "plan.json"):  # a summary of something else
        return None
    plan = _read(folder / "plan.json")
    given = plan.get("conditions")
    if not isinstance(given, dict) or plan.get("ramp"):
        return None
    summary = _read(folder / "summary.json")
    measured = summary.get(MEASURED)
    if not isinstance(measured, dict):
        return None
    counts = {
        name: int(positive(plan, name) or 0)
        for name in ("global_batch_size", "num_samples", "grad_accum_steps", "max_micro_batch_size", "world_size")
    }
    if wrong := [name for name, count in counts.items() if not 1 <= count < 2**53]:
        raise ValueError(f"plan.json: {', '.join(wrong)} is no whole number above 0")
    samples = -(-counts["global_batch_size"] // counts["world_size"])
    numbers = {str(key): value for key in measured if (value := positive(measured, key)) is not None}
    return EarlierRun(
        folder.name,
        None if given.get(SEED) is None else str(given[SEED]),
        given,
        counts["global_batch_size"],
        counts["num_samples"],
        Shape(samples, counts["grad_accum_steps"], counts["max_micro_batch_size"]),
        numbers,
        ends_of(summary),
        tuple(grades_in(summary)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_regular(path, most=_MOST_BYTES, inside=path.parent)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is half written, or no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values

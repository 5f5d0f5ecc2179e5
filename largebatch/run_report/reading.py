"""Finds the folders that a report is about and reads them; what cannot be read is named, not raised."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from largebatch.run_report.records import Evidence, JsonRecord, LeftOut, RunRecord

# File -> kind of record, and the keys without which it is none.
_RECORDS = {
    "variance.json": ("variance", ("noise", "with_replacement")),
    "gap.json": ("gap", ("parts", "train_loss")),
    "communication.json": ("communication", ("medians", "fit")),
    "sharpness.json": ("sharpness", ("lambda_max",)),
    "large_batch_gap.json": ("comparison", ("large_batch_gap",)),
    "study.json": ("study", ("points",)),
    "find_lr.json": ("find_lr", ("lr",)),
    "chapter.json": ("chapter", ("title",)),
    "atlas.json": ("chapter", ("title",)),  # told in the same way
}
_RUN = "metrics.jsonl"
_CLOSED = {"checkpoints", "plots", "wandb", "tensorboard", "__pycache__"}  # folders of a run without runs in them


def read_evidence(folders: Sequence[str | Path]) -> Evidence:
    """Read the given folders and all below them that hold a run or a record, each once.

    A folder that is missing, empty or broken becomes a `LeftOut`. Of the runs below a study only those count as runs
    that its points name: the others tried settings that it did not choose.
    """
    runs: list[RunRecord] = []
    records: dict[str, list[JsonRecord]] = {}
    left_out: list[LeftOut] = []

    def attempt(path: Path, read: Callable[[], None]) -> None:
        try:
            read()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            left_out.append(LeftOut(path, _reason(error)))

    for path in _marked(folders, left_out):
        if path.name == _RUN:
            attempt(path.parent, lambda path=path: runs.append(_read_run(path.parent)))  # type: ignore[misc]
        else:
            kind, _ = _RECORDS[path.name]
            attempt(path, lambda path=path, kind=kind: records.setdefault(kind, []).append(_read_record(path)))  # type: ignore[misc]
    chosen, trials = _without_trials(runs, records.get("study", []))
    chosen = _with_owners(chosen, records.get("chapter", []))
    named = {kind: _named_records(found) for kind, found in records.items()}
    return Evidence(_named_runs(chosen), named, tuple(left_out), trials)


def _marked(folders: Sequence[str | Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """The files that make a folder one to read, each once."""
    seen: set[Path] = set()
    for given in map(Path, folders):
        if not given.is_dir():
            left_out.append(LeftOut(given, "is no folder" if given.exists() else "does not exist"))
            continue
        found = False
        for path in _below(given):
            found = True
            if (real := path.resolve()) not in seen:
                seen.add(real)
                yield path
        if not found:
            left_out.append(LeftOut(given, f"neither it nor a folder below it has {_RUN} or a record of a measurement"))


def _below(folder: Path) -> Iterator[Path]:
    for root, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if name not in _CLOSED and not name.startswith("."))
        # `plan.json` without metrics: a run that was killed before its first row; reading it says so.
        if _RUN in files or {"plan.json", "config.yaml"} <= set(files):
            yield Path(root) / _RUN
        yield from (Path(root) / name for name in _RECORDS if name in files)


def _read_run(folder: Path) -> RunRecord:
    """Raises OSError or ValueError if it is not enough of a run."""
    from omegaconf import OmegaConf

    from largebatch.run_folder import RunFolder
    from largebatch.trackers.jsonl import read_metrics

    paths = RunFolder(folder)
    for file in (folder / "plan.json", folder / "config.yaml", paths.metrics):
        if not file.is_file():
            raise ValueError(f"{file.name} is missing")
    rows = [row for row in read_metrics(paths.metrics) if _has_position(row)]
    if not rows:
        raise ValueError(f"{_RUN} has no whole row")
    plan = _json(folder / "plan.json")
    if not isinstance(plan.get("global_batch_size"), int):
        raise ValueError("plan.json has no global_batch_size")
    try:
        settings = flat_settings(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False))
    except Exception as error:  # of omegaconf, or of the YAML reader behind it
        raise ValueError(f"config.yaml cannot be read: {error}") from error
    summary_file = folder / "summary.json"
    summary = _json(summary_file) if summary_file.is_file() else {}
    layers = read_metrics(paths.layers) if paths.layers.is_file() else []
    return RunRecord(folder, folder.name, plan, settings, summary, rows, [row for row in layers if _has_position(row)])


def flat_settings(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as texts.

    >>> flat_settings({"a": {"b": 1, "c": [2]}})
    {'a.b': '1', 'a.c': '[2]'}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: str(value)} if prefix else {}
    parts = (flat_settings(part, f"{prefix}.{key}" if prefix else str(key)) for key, part in value.items())
    return {key: text for part in parts for key, text in part.items()}


def _has_position(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(key), (int, float)) for key in ("step", "samples_seen"))


def _read_record(path: Path) -> JsonRecord:
    _, needed = _RECORDS[path.name]
    values = _json(path)
    if missing := [key for key in needed if key not in values]:
        raise ValueError(f"has no {', '.join(missing)}")
    for key in ("points", "fits"):  # of a study, which tells of its runs
        if not all(isinstance(one, dict) for one in values.get(key) or ()):
            raise ValueError(f"{key} are no list of objects")
    return JsonRecord(path, path.parent.name, values)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is half written, or no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values


def _without_trials(runs: Sequence[RunRecord], studies: Sequence[JsonRecord]) -> tuple[list[RunRecord], int]:
    roots = [study.path.parent.resolve() for study in studies]
    chosen = {
        (root / folder).resolve()
        for root, study in zip(roots, studies, strict=True)
        for point in study.values["points"]
        for folder in point.get("runs") or ()
    }
    kept = [
        run
        for run in runs
        if run.folder.resolve() in chosen or not any(run.folder.resolve().is_relative_to(root) for root in roots)
    ]
    return kept, len(runs) - len(kept)


def _with_owners(runs: Sequence[RunRecord], chapters: Sequence[JsonRecord]) -> list[RunRecord]:
    """Runs of an experiment differ in what it is about: they are no replicates of anything."""
    roots = [chapter.path.parent.resolve() for chapter in chapters]
    owned = [any(run.folder.resolve().is_relative_to(root) for root in roots) for run in runs]
    return [replace(run, is_compared=not is_owned) for run, is_owned in zip(runs, owned, strict=True)]


def _named_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    names = _unique_names([run.folder for run in runs])
    named = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return sorted(named, key=lambda run: (run.global_batch_size, run.optimizer, run.name))


def _named_records(records: Sequence[JsonRecord]) -> list[JsonRecord]:
    names = _unique_names([record.path.parent for record in records])
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as it takes to tell it from the others."""
    paths = [folder.resolve().parts for folder in folders]
    names = ["/".join(path[-1:]) for path in paths]
    for length in range(2, max(map(len, paths), default=0) + 1):
        count = Counter(names)
        names = [
            name if count[name] == 1 else "/".join(path[-length:]) for name, path in zip(names, paths, strict=True)
        ]
    return names


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{type(error).__name__}: {text}" if isinstance(error, (KeyError, TypeError, AttributeError)) else text

"""Finds and reads the folders of a report; an unreadable one is named, not raised."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import scandir
from pathlib import Path

from largebatch.records.regular_files import printable
from largebatch.records.report.evidence import Evidence, JsonRecord, LeftOut, RunRecord
from largebatch.records.report.run_files import read_record, read_run
from largebatch.records.result import FILES

_RUN = "metrics.jsonl"
_NAMES = {_RUN, *FILES}
_CLOSED = {"checkpoints", "plots", "wandb", "tensorboard", "__pycache__"}  # folders of a run without runs in them


def read_evidence(folders: Sequence[str | Path]) -> Evidence:
    """Read the given folders and all below them that hold a run or a record, each once.

    A folder that is missing, empty or broken becomes a `LeftOut`. Of the runs below a study only those count as runs
    that its points name: the others tried settings that it did not choose.
    """
    runs: list[RunRecord] = []
    records: dict[str, list[JsonRecord]] = {}
    left_out: list[LeftOut] = []

    for path in _marked(folders, left_out):
        try:
            if path.name == _RUN:
                runs.append(read_run(path.parent))
            else:
                records.setdefault(FILES[path.name][0], []).append(read_record(path))
        except Exception as error:  # noqa: PERF203  whatever it is, the others are shown
            left_out.append(LeftOut(path.parent if path.name == _RUN else path, _reason(error)))
    named = {kind: _named_records(found) for kind, found in records.items()}
    chosen, trials = _without_trials(runs, named.get("study", []))
    chosen = _with_owners(chosen, [*named.get("textbook", []), *named.get("attribution", [])])
    return Evidence(_named_runs(chosen), named, tuple(left_out), trials)


def read_records(files: Sequence[Path], left_out: Sequence[LeftOut] = ()) -> Evidence:
    """Read the records that a verb has just written, for the page of a measurement, a study or a comparison.

    Args:
        files: the records.
        left_out: other things that the page names.

    Raises:
        OSError, ValueError: if one of them is no record.
    """
    records: dict[str, list[JsonRecord]] = {}
    for file in files:
        records.setdefault(FILES[file.name][0], []).append(read_record(file))
    return Evidence((), {kind: _named_records(found) for kind, found in records.items()}, left_out)


def _marked(folders: Sequence[str | Path], left_out: list[LeftOut]) -> Iterator[Path]:
    """The files that make a folder one to read, each once."""
    seen: set[Path] = set()
    for given in map(Path, folders):
        if not given.is_dir():
            left_out.append(LeftOut(given, "is no folder" if given.exists() else "does not exist"))
            continue
        found, num_left_out = False, len(left_out)
        for path in _below(given, left_out):
            found = True
            if (real := _real(path.parent) / path.name) not in seen:  # of a link the place, not where it leads
                seen.add(real)
                yield path
        if not found and len(left_out) == num_left_out:
            left_out.append(LeftOut(given, f"neither it nor a folder below it has {_RUN} or a record of a measurement"))


def _below(folder: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """The files to read below a folder. os.walk calls itself for every level, and folders may be a thousand deep."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with scandir(here) as entries:
                found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            left_out.append(LeftOut(here, f"cannot be looked into: {error.strerror or error}"))
            continue
        inside = [name for name, is_folder in found.items() if is_folder and name not in _NAMES]
        waiting += [here / name for name in sorted(inside, reverse=True) if name not in _CLOSED and name[0] != "."]
        # `plan.json` without metrics: a run that was killed before its first row; reading it says so.
        if _RUN in found or {"plan.json", "config.yaml"} <= found.keys():
            yield here / _RUN
        yield from (here / name for name in FILES if name in found)


def _without_trials(runs: Sequence[RunRecord], studies: Sequence[JsonRecord]) -> tuple[list[RunRecord], int]:
    """Runs below a study only where its points name them, each with the study's name; and the number of others."""
    roots = [_real(study.path.parent) for study in studies]
    chosen = {_real(study.path.parent / run): study.name for study in studies for run in study.result.runs}
    kept = [
        replace(run, study=chosen.get(real, ""))
        for run in runs
        if (real := _real(run.folder)) in chosen or not any(real.is_relative_to(root) for root in roots)
    ]
    return kept, len(runs) - len(kept)


def _with_owners(runs: Sequence[RunRecord], owners: Sequence[JsonRecord]) -> list[RunRecord]:
    """Mark runs of an experiment as not compared: they differ in its subject, and are no replicates."""
    roots = [_real(owner.path.parent) for owner in owners]
    owned = [any(_real(run.folder).is_relative_to(root) for root in roots) for run in runs]
    return [replace(run, is_compared=not is_owned) for run, is_owned in zip(runs, owned, strict=True)]


def _named_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    names = _unique_names([run.folder for run in runs])
    named = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    return sorted(named, key=lambda run: (run.global_batch_size, run.optimizer, run.name))


def _named_records(records: Sequence[JsonRecord]) -> list[JsonRecord]:
    names = _unique_names([record.path.parent for record in records])
    return [replace(record, name=name) for record, name in zip(records, names, strict=True)]


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as make it unique."""
    paths = [tuple(map(printable, _real(folder).parts)) for folder in folders]
    names = ["/".join(path[-1:]) for path in paths]
    for length in range(2, max(map(len, paths), default=0) + 1):
        count = Counter(names)
        names = [
            name if count[name] == 1 else "/".join(path[-length:]) for name, path in zip(names, paths, strict=True)
        ]
    return names


def _real(path: Path) -> Path:
    """`Path.resolve` raises where links go in a circle."""
    return Path(os.path.realpath(path))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.path.basename(os.fsdecode(error.filename))} cannot be read: {error.strerror}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {text}"

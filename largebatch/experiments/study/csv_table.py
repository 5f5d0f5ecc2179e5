"""Reads steps to a target from a CSV file: anybody's measurements, one row per run."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
from largebatch.experiments.study.points import StudyPoint
from largebatch.records.regular_files import open_regular, printable
from largebatch.run.config.did_you_mean import nearest

REQUIRED = ("batch_size", "steps")
OPTIONAL = ("optimizer", "seed", "censored", "runs")
ONLY_ONE = "all runs"  # the name of the group where there is no column `optimizer`
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}
_MOST_ERRORS = 10


class TableError(ValueError):
    """The faults of a table, one line each, with the numbers of its lines."""


Row = tuple[str, int, str, float, bool, int]  # optimizer, batch size, seed, steps, censored, runs


def read_points(path: Path) -> list[StudyPoint]:
    """One point per optimizer and batch size, ascending; rows of one are its replicates.

    Columns `batch_size` and `steps`, and optionally `optimizer`, `seed` (at most one row of each per point),
    `censored` (true: the target was not reached within `steps`) and `runs` (how many runs `steps` is the median of:
    then one row per point). Others are not read: see `unread_columns`.

    Raises:
        TableError: with every fault, up to 10 lines.
        OSError: if the file cannot be read.
    """
    with _open(path) as file:
        try:
            rows = _rows(path, csv.DictReader(file, skipinitialspace=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(f"{path}: is no CSV file in UTF-8 ({error}). Save it as one, with commas.") from None
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault(row[:2], []).append(row)
    names = list(dict.fromkeys(row[0] for row in rows))
    in_order = sorted(groups, key=lambda group: (names.index(group[0]), group[1]))
    return [_point(name, size, groups[name, size]) for name, size in in_order]


def _open(path: Path) -> TextIO:
    try:
        return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="")
    except ValueError as error:
        raise TableError(f"{path.parent}: {error}") from None


def _rows(path: Path, reader: csv.DictReader[str]) -> list[Row]:
    names = [name.strip() for name in reader.fieldnames or []]
    _require_columns(path, names)
    reader.fieldnames = names
    rows, errors = [], []
    seen: dict[tuple[str, int, str], int] = {}
    summaries: dict[tuple[str, int], int] = {}
    for values in reader:
        line = reader.line_num
        try:
            row = _row(values)
            if row[2] and (before := seen.setdefault(row[:3], line)) != line:
                raise ValueError(f"seed={row[2]}: line {before} has it at this batch size too. Remove one.")
            if row[5] and (before := summaries.setdefault(row[:2], line)) != line:
                raise ValueError(f"runs={row[5]}: line {before} has this batch size too. Keep one row with a median.")
            rows.append(row)
        except ValueError as error:
            errors.append(f"{path}: line {line}: {error}")
    if errors:
        more = [f"... and {len(errors) - _MOST_ERRORS} more lines"] if len(errors) > _MOST_ERRORS else []
        raise TableError("\n".join([*errors[:_MOST_ERRORS], *more]))
    if not rows:
        raise TableError(f"{path}: has no rows below its first line. Add one per run.")
    return rows


def _require_columns(path: Path, names: list[str]) -> None:
    """Refuse repeated and missing columns, and a misspelt one, which would be ignored without a word."""
    errors = [f"{name} twice. Keep one." for name in (*REQUIRED, *OPTIONAL) if names.count(name) > 1]
    if missing := [name for name in REQUIRED if name not in names]:
        separate = " Separate cells with commas." if len(names) == 1 else ""
        errors.append(
            f"{', '.join(names) or 'none'}: {' and '.join(missing)} must be among them.{separate} Name the columns in "
            f"the first line: {', '.join(REQUIRED)}, and optionally {', '.join(OPTIONAL)}."
        )
    errors += [f"{name}, which is not read. {hint} Rename it, or leave it out." for name, hint in _misspelt(names)]
    if errors:
        raise TableError("\n".join(f"{path}: line 1 has the columns {error}" for error in errors))


def _misspelt(names: list[str]) -> list[tuple[str, str]]:
    """Columns that look like a misspelling of an absent one, each with a suggestion."""
    absent = [name for name in (*REQUIRED, *OPTIONAL) if name not in names]
    # A column `run` is likelier the name of a run than a number of them.
    misspelt = [name for name in absent if name != "runs"]
    found = []
    for name in names:
        plain = "_".join(re.findall(r"\w+", name.lower()))
        if name not in (*REQUIRED, *OPTIONAL) and (meant := [plain] if plain in absent else nearest(plain, misspelt)):
            found.append((name, f"Did you mean {' or '.join(meant)}?"))
    return found


def notes_of_unread(files: Sequence[Path]) -> list[str]:
    """A line for each file with columns that are not read: one of them may be a misspelling."""
    known = ", ".join((*REQUIRED, *OPTIONAL))
    return [
        f"{printable(file)}: not read: {printable(', '.join(names))}. Columns with a meaning: {known}."
        for file in files
        if (names := unread_columns(file))
    ]


def unread_columns(path: Path) -> list[str]:
    """Columns of a table that `read_points` passes over."""
    with _open(path) as file:
        names = [name.strip() for name in csv.DictReader(file, skipinitialspace=True).fieldnames or []]
    return [name for name in names if name not in (*REQUIRED, *OPTIONAL)]


def _row(values: Mapping[str | None, str | list[str] | None]) -> Row:
    if None in values or None in values.values():
        raise ValueError("has another number of cells than the first line. Quote texts that contain commas.")
    cells = {name: str(value).strip() for name, value in values.items()}
    size, steps = _number(cells, "batch_size"), _number(cells, "steps")
    if size != int(size):
        raise ValueError(f"batch_size={cells['batch_size']}: must be a whole number of samples.")
    censored = _TRUTH.get(cells.get("censored", "").lower())
    if censored is None:
        raise ValueError(f"censored={cells['censored']}: must be true (the target was not reached) or false.")
    runs = _number(cells, "runs") if cells.get("runs") else 0
    if runs != int(runs):
        raise ValueError(f"runs={cells['runs']}: must be a whole number.")
    if cells.get("optimizer") == "":
        raise ValueError("optimizer=nothing: the table has a column of names. Give one in every row.")
    return cells.get("optimizer", ONLY_ONE), int(size), cells.get("seed", ""), steps, censored, int(runs)


def _number(cells: Mapping[str | None, str], name: str) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        hint = " For a run that missed the target give its steps, and censored=true." if name == "steps" else ""
        raise ValueError(f"{name}={cells[name] or 'nothing'}: must be a number above 0.{hint}")
    return value


def _point(optimizer: str, size: int, rows: list[Row]) -> StudyPoint:
    reached = tuple(steps for *_, steps, censored, _ in rows if not censored)
    hidden = tuple(steps for *_, steps, censored, _ in rows if censored)
    by_seed = tuple(None if censored else steps for *_, steps, censored, _ in rows)
    return StudyPoint(optimizer, StepsToTarget(size, reached, hidden, max(row[5] for row in rows)), by_seed)

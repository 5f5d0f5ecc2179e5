"""Reads the evaluations of a run for `largebatch compare`, in memory that grows with them alone."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from largebatch.diagnostics import Evaluations
from largebatch.records.report.run_files import planned_end, read_plan, read_settings
from largebatch.records.rows.placed_rows import FURTHEST, Faults, Place, number, placed_rows, thinned
from largebatch.records.rows.row_file import Row
from largebatch.records.run_folder import RunFolder

_NEEDED = ("samples_seen", "step", "eval/train_loss", "eval/val_loss")  # of an evaluation
_EVALUATED = (*_NEEDED, "eval/val_accuracy", "gap/loss")
_MISSING = -math.inf  # in a table of evaluations, where NaN is a value that is not finite
_MOST_DRAWN = 10_000  # evaluations of a run in the picture


@dataclass(frozen=True)
class EvaluatedRun:
    """A run, read from its folder.

    Attributes:
        folder: the run's.
        global_batch_size: in samples.
        rows: its evaluations, to draw, of very many every n-th; and its last position.
        evaluations: those that can be compared.
        faults: of lines of metrics.jsonl, as in `Columns`.
        settings: dotted key of config.yaml -> its value as a text.
    """

    folder: Path
    global_batch_size: int
    rows: Sequence[Row]
    evaluations: Evaluations
    faults: Sequence[str]
    settings: dict[str, str]


def read_evaluated(folder: Path) -> EvaluatedRun:
    """Raises OSError or ValueError if the folder holds no run that can be compared."""
    metrics = RunFolder(folder).metrics
    for file in (folder / "plan.json", folder / "config.yaml", metrics):
        if not file.exists():
            raise ValueError(f"{file} does not exist. Give the folder of a run of `largebatch train`.")
    try:
        plan, settings = read_plan(folder), read_settings(folder)
        if plan.get("ramp"):
            raise ValueError("its batch changes over the run, so that it belongs to no batch size. Leave it out.")
        table, furthest, faults = _read_evaluations(metrics, inside=folder, end=planned_end(plan))
        if not len(table):  # then it may be the plan that is wrong
            table, furthest, faults = _read_evaluations(metrics, inside=folder, end=FURTHEST)
        rows = [
            {key: value for key, value in zip(_EVALUATED, line, strict=True) if value != _MISSING}
            for line in table[thinned(len(table), _MOST_DRAWN)].tolist()
        ]
        evaluations = _evaluations(table)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return EvaluatedRun(folder, plan["global_batch_size"], [*rows, furthest], evaluations, faults, settings)


def _read_evaluations(metrics: Path, *, inside: Path, end: Place) -> tuple[np.ndarray, Row, Sequence[str]]:
    """Rows of evaluations as a table of `_EVALUATED`, the furthest position, and what could not be used."""
    faults = Faults()
    found = array("d")
    furthest = (0.0, 0.0)
    for step, samples, line, row in placed_rows(metrics, faults, inside=inside, end=end):
        furthest = max(furthest[0], samples), max(furthest[1], step)
        if any(key in row for key in _EVALUATED[2:]):
            values = [number(row[key]) if key in row else _MISSING for key in _EVALUATED]
            if None in values:
                faults.add("no_number", line)
            found.extend(_MISSING if value is None else value for value in values)
    return np.array(found).reshape(-1, len(_EVALUATED)), dict(zip(_EVALUATED, furthest, strict=False)), faults.clauses()


def _evaluations(table: np.ndarray) -> Evaluations:
    """Whole ones with finite losses, ascending; of several of one step the last. Raises ValueError without any."""
    whole = table[(table[:, : len(_NEEDED)] != _MISSING).all(axis=1)]
    _, from_end = np.unique(whole[::-1, 1], return_index=True)
    found = whole[len(whole) - 1 - from_end]
    samples, steps, train_loss, val_loss, accuracy, _ = found[np.isfinite(found[:, : len(_NEEDED)]).all(axis=1)].T
    if not len(samples):
        raise ValueError("its metrics have no evaluation with finite losses. Train with evaluation.")
    if (np.diff(samples) < 0).any():
        raise ValueError("its samples seen fall while its steps rise: these are rows of several runs. Leave it out.")
    return Evaluations(samples, steps, train_loss, val_loss, accuracy if np.isfinite(accuracy).all() else None)

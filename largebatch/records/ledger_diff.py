"""Two ledgers side by side: the first step in which they differ, and the differences there, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from largebatch.records.ledger import (
    FIELDS,
    Comparison,
    FieldComparison,
    Ledger,
    LedgerRow,
    compare_ledgers,
    is_ledger_row,
    relative_difference,
)
from largebatch.records.regular_files import printable
from largebatch.records.rows.row_file import read_lines


def diff_ledgers(given: Sequence[str], *, loss_tolerance: float) -> tuple[bool, list[str]]:
    """Whether two ledgers are equal, and the lines to print.

    Args:
        given: two folders of runs, or ledgers.
        loss_tolerance: relative difference up to which losses count as equal.

    Raises:
        OSError, ValueError: if there is nothing to compare.
    """
    files = [_file_of(Path(text)) for text in given]
    (first, notes_of_first), (second, notes_of_second) = map(_read, files)
    comparison = compare_ledgers(first, second, loss_tolerance=loss_tolerance)
    if not comparison.common_steps:
        raise ValueError(
            f"the ledgers have no step in common: A has {_steps(comparison.only_first)}, "
            f"B has {_steps(comparison.only_second)}. Compare runs of the same steps."
        )
    lines = []
    for name, text, ledger, notes in zip("AB", given, (first, second), (notes_of_first, notes_of_second), strict=True):
        lines += [f"{name}  {printable(text)}: {_steps(ledger.steps)}", *notes]
    return comparison.first_divergence is None, lines + _report(comparison, files, loss_tolerance)


def _file_of(path: Path) -> Path:
    return path / "ledger.jsonl" if path.is_dir() else path


def _read(file: Path) -> tuple[Ledger, list[str]]:
    """A ledger, and notes on its unusable lines.

    Raises OSError or ValueError if there is none.
    """
    if not file.exists():
        raise ValueError(
            f"{file} does not exist. A run writes it when it is trained with observers.ledger.enabled=true."
        )
    torn: list[int] = []
    num_foreign = 0

    def rows() -> Iterator[LedgerRow]:
        nonlocal num_foreign
        for line in read_lines(file):
            if line.row is None:
                torn.append(line.number)
            elif is_ledger_row(line.row):
                yield line.row
            else:
                num_foreign += 1

    ledger = Ledger(rows())
    if not ledger.num_rows:
        raise ValueError(f"{file} has no row of a ledger. Give the folder of a run, or its ledger.jsonl.")
    notes = []
    if torn:
        shown = ", ".join(map(str, torn[:5])) + (", ..." if len(torn) > 5 else "")
        notes.append(f"   torn lines left out: {shown}")
    if num_foreign:
        notes.append(f"   {num_foreign} lines left out: they are no rows of a ledger")
    if twice := ledger.num_rows - len(ledger.steps):
        notes.append(f"   {twice} steps are there twice: the last row counts")
    return ledger, notes


def _row_of(file: Path, step: int) -> LedgerRow:
    """The last row of the step, as it is written."""
    found = [line.row for line in read_lines(file) if line.row and line.row.get("step") == step]
    return [row for row in found if is_ledger_row(row)][-1]


def _report(comparison: Comparison, files: Sequence[Path], tolerance: float) -> list[str]:
    lines = []
    for name, steps in (("A", comparison.only_first), ("B", comparison.only_second)):
        if steps:
            lines.append(f"only {name} has {_steps(steps)}")
    compared = _steps(comparison.common_steps)
    if comparison.first_divergence is None:
        how = f"with losses within {tolerance:g}" if tolerance else "bit for bit"
        lines += ["", f"equal {how} over {compared}"]
    else:
        step, fields = comparison.first_divergence
        rows = [_row_of(file, step) for file in files]
        names = [FIELDS[field] for field in fields]
        lines += ["", f"first different at step {step}: {names[0]}" + _also(names[1:])]
        for field in fields:
            lines += [f"  {name} {FIELDS[field]}: {_value(row, field)}" for name, row in zip("AB", rows, strict=True)]
            lines += _apart(rows, field)
    lines += ["", f"over {compared}:"]
    return lines + [f"  {_summary(one, comparison)}" for one in comparison.fields]


def _also(names: Sequence[str]) -> str:
    return f" (and with it: {', '.join(names)})" if names else ""


def _value(row: LedgerRow, field: str) -> str:
    if field in ("lr", "loss"):
        return f"{float.fromhex(row[field])!r} ({row[field]})"
    return printable(row[field])


def _apart(rows: Sequence[LedgerRow], field: str) -> list[str]:
    if field not in ("lr", "loss"):
        return []
    one, other = (float.fromhex(row[field]) for row in rows)
    return [f"  relative difference: {relative_difference(one, other):.3g}"]


def _summary(one: FieldComparison, comparison: Comparison) -> str:
    name = FIELDS[one.field]
    if not one.num_compared:
        return f"{name}: not compared, no step has it in both ledgers"
    note = "" if one.field in comparison.judged else "; not judged, since losses may differ"
    distance = f", at most {one.largest:.3g} relative" if one.largest else ""
    if not one.differing_steps:
        return f"{name}: equal in all {one.num_compared:,} rows{distance}{note}"
    first, count = one.differing_steps[0], len(one.differing_steps)
    return f"{name}: different in {count:,} of {one.num_compared:,} rows, first at step {first}{distance}{note}"


def _steps(steps: Sequence[int] | np.ndarray) -> str:
    """Ascending steps as ranges: `steps 1 to 4, 6` with the number of steps."""
    found = np.asarray(steps)
    begins = np.flatnonzero(np.diff(found, prepend=found[0] - 2) != 1)
    ends = [*(begins[1:6] - 1), len(found) - 1][: len(begins[:5])]
    ranges = [(int(found[begin]), int(found[end])) for begin, end in zip(begins[:5], ends, strict=True)]
    shown = [f"{low}" if low == high else f"{low} to {high}" for low, high in ranges]
    more = [f"and {len(begins) - 5} more ranges"] if len(begins) > 5 else []
    return f"{len(found):,} steps, {', '.join([*shown, *more])}" if len(found) != 1 else f"step {shown[0]}"

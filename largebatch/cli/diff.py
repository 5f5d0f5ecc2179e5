"""`largebatch diff A B`: the first step in which two runs differ, and what differs there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT
from largebatch.records.regular_files import printable

if TYPE_CHECKING:
    import numpy as np

    from largebatch.records.ledger import Comparison, FieldComparison, Ledger, LedgerRow

EXIT_EQUAL, EXIT_DIFFERENT = EXIT_DONE, EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """`diff A B [--loss-tolerance R]`; returns 0 if the ledgers agree, 1 if they differ, 2 for wrong input."""
    parser = _parser()
    try:
        options = parser.parse_args(list(arguments))
    except SystemExit as exit_:
        return EXIT_WRONG_INPUT if exit_.code else 0
    from largebatch.records.ledger import compare_ledgers

    given = (options.first, options.second)
    try:
        files = [_file_of(Path(text)) for text in given]
        (first, notes_of_first), (second, notes_of_second) = map(_read, files)
        comparison = compare_ledgers(first, second, loss_tolerance=options.loss_tolerance)
        if not comparison.common_steps:
            raise ValueError(
                f"the ledgers have no step in common: A has {_steps(comparison.only_first)}, "
                f"B has {_steps(comparison.only_second)}. Compare runs of the same steps."
            )
        report = _report(comparison, files, options.loss_tolerance)
    except (OSError, ValueError) as error:
        print(f"largebatch diff: {printable(error)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    for name, text, ledger, notes in zip("AB", given, (first, second), (notes_of_first, notes_of_second), strict=True):
        print("\n".join([f"{name}  {printable(text)}: {_steps(ledger.steps)}", *notes]))
    print("\n".join(report))
    return EXIT_DIFFERENT if comparison.first_divergence else EXIT_EQUAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch diff",
        description="Find the first optimizer step in which two runs differ. Exit code 0: equal, 1: different, "
        "2: wrong input.",
    )
    parser.add_argument("first", metavar="A", help="folder of a run, or a ledger.jsonl")
    parser.add_argument("second", metavar="B", help="the other one")
    parser.add_argument(
        "--loss-tolerance",
        type=_tolerance,
        default=0.0,
        metavar="R",
        help="relative difference up to which losses count as equal; hashes of parameters are then not judged. Sums of "
        "another number of ranks differ in the last digits. Default: 0, bitwise",
    )
    return parser


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a tolerance is a finite number, 0 or more.")
    return value


def _file_of(path: Path) -> Path:
    return path / "ledger.jsonl" if path.is_dir() else path


def _read(file: Path) -> tuple[Ledger, list[str]]:
    """A ledger and what was wrong with lines of it.

    Raises OSError or ValueError if there is none.
    """
    from largebatch.records.ledger import Ledger, is_ledger_row
    from largebatch.records.rows.row_file import read_lines

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
    """As it is written: the last one of the step."""
    from largebatch.records.ledger import is_ledger_row
    from largebatch.records.rows.row_file import read_lines

    found = [line.row for line in read_lines(file) if line.row and line.row.get("step") == step]
    return [row for row in found if is_ledger_row(row)][-1]


def _report(comparison: Comparison, files: Sequence[Path], tolerance: float) -> list[str]:
    from largebatch.records.ledger import FIELDS

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
            lines += [f"  {which} {FIELDS[field]}: {_shown(row, field)}" for which, row in zip("AB", rows, strict=True)]
            lines += _apart(rows, field)
    lines += ["", f"over {compared}:"]
    return lines + [f"  {_summary(one, comparison)}" for one in comparison.fields]


def _also(names: Sequence[str]) -> str:
    return f" (and with it: {', '.join(names)})" if names else ""


def _shown(row: LedgerRow, field: str) -> str:
    if field in ("lr", "loss"):
        return f"{float.fromhex(row[field])!r} ({row[field]})"
    return printable(row[field])


def _apart(rows: Sequence[LedgerRow], field: str) -> list[str]:
    from largebatch.records.ledger import relative_difference

    if field not in ("lr", "loss"):
        return []
    one, other = (float.fromhex(row[field]) for row in rows)
    return [f"  relative difference: {relative_difference(one, other):.3g}"]


def _summary(one: FieldComparison, comparison: Comparison) -> str:
    from largebatch.records.ledger import FIELDS

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
    import numpy as np

    found = np.asarray(steps)
    begins = np.flatnonzero(np.diff(found, prepend=found[0] - 2) != 1)
    ends = [*(begins[1:6] - 1), len(found) - 1][: len(begins[:5])]
    ranges = [(int(found[begin]), int(found[end])) for begin, end in zip(begins[:5], ends, strict=True)]
    shown = [f"{low}" if low == high else f"{low} to {high}" for low, high in ranges]
    more = [f"and {len(begins) - 5} more ranges"] if len(begins) > 5 else []
    return f"{len(found):,} steps, {', '.join([*shown, *more])}" if len(found) != 1 else f"step {shown[0]}"

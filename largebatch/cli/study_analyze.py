"""`largebatch study analyze FILE`: S_min, E_min and B_crit of anybody's measurements."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.records.regular_files import printable


def main(arguments: Sequence[str]) -> int:
    """`FILE [--out FOLDER]`; returns 0, or 2 for wrong input."""
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as exit_:
        return EXIT_WRONG_INPUT if exit_.code else EXIT_DONE
    from largebatch.experiments.study import TableError, analyse, read_points
    from largebatch.experiments.study.presenting import present, study_result
    from largebatch.records.run_folder import new_folder

    file = Path(options.file)
    try:
        points = read_points(file)
    except (OSError, TableError) as error:
        print(f"largebatch study analyze: {printable(error, lines=True)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    tell_unread(file)
    folder = Path(options.out) if options.out else new_folder("runs", "study")
    result = study_result(analyse(points), title=f"steps to the target, {file.name}")
    present(result, folder, config={"file": str(file)})
    return EXIT_DONE


def tell_unread(file: Path) -> None:
    """A line about columns that have no meaning here: one of them may have been meant to have one."""
    from largebatch.experiments.study.csv_table import OPTIONAL, REQUIRED, unread_columns

    if names := unread_columns(file):
        known = ", ".join((*REQUIRED, *OPTIONAL))
        print(f"{printable(file)}: not read: {printable(', '.join(names))}. What has a meaning: {known}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch study analyze",
        description="Fit S = S_min (1 + B_crit/B) to steps to a target, with 95 % intervals, and say what the evidence "
        "does not support.",
        epilog="The first line of FILE names its columns: batch_size and steps, and if you like optimizer, seed and "
        "censored (true: the target was not reached within `steps`). One row per run; or one per batch size, with the "
        "median in `steps` and the number of its runs in `runs`.",
    )
    parser.add_argument("file", metavar="FILE", help="CSV")
    parser.add_argument("--out", metavar="FOLDER", help="for study.json, study.png and page.html; default: a new one")
    return parser

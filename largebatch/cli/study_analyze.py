"""`largebatch study analyze FILE`: fits S_min, E_min and B_crit to any measurements."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE

if TYPE_CHECKING:
    from largebatch.experiments.study.points import StudyPoint


def main(arguments: Sequence[str]) -> int:
    """`FILE [--out FOLDER]`; returns 0, or 2 for wrong input."""
    return with_arguments(_parser(), arguments, _read, _conclude)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch study analyze",
        description="Fit S = S_min (1 + B_crit/B) to steps to a target, with 95 % intervals, and name every conclusion "
        "that the data does not support.",
        epilog="The first line of FILE names its columns: batch_size and steps; optionally optimizer, seed and "
        "censored (true: the target was not reached within `steps`). One row per run; or one per batch size, with the "
        "median in `steps` and the number of its runs in `runs`.",
    )
    parser.add_argument("file", metavar="FILE", help="CSV")
    parser.add_argument("--out", metavar="FOLDER", help="for study.json, study.png, page.html; default: a new folder")
    return parser


def _read(options: argparse.Namespace) -> list[StudyPoint]:
    from largebatch.experiments.study import read_points

    return read_points(Path(options.file))


def _conclude(options: argparse.Namespace, points: list[StudyPoint]) -> int:
    from largebatch.experiments.study import analyse
    from largebatch.experiments.study.csv_table import notes_of_unread
    from largebatch.experiments.study.study_result import present, study_result
    from largebatch.records.run_folder import chosen_folder

    file = Path(options.file)
    print("".join(f"{note}\n" for note in notes_of_unread([file])), end="")
    folder = chosen_folder(options.out, "runs", "study")
    result = study_result(analyse(points), title=f"steps to the target, {file.name}")
    present(result, folder, config={"file": str(file)})
    return EXIT_DONE

"""`largebatch textbook page [FOLDER...]`: the chapter as one page, with what runs below the folders have measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_IN_PART
from largebatch.records.regular_files import printable

if TYPE_CHECKING:
    from largebatch.records.report import Evidence


def main(arguments: Sequence[str]) -> int:
    """`textbook page [FOLDER...] [--out FILE]`.

    Returns 0; 1 if the page cannot be written; 2 for wrong input; 3 if a folder was left out or is damaged.
    """
    return with_arguments(_parser(), arguments, _read, _conclude)


def _read(options: argparse.Namespace) -> Evidence:
    from largebatch.records.report import read_evidence

    if missing := [folder for folder in options.folders if not Path(folder).is_dir()]:
        raise ValueError(f"{missing[0]} is no folder. Name folders with runs, or none: the page needs no run.")
    return read_evidence(options.folders)


def _conclude(options: argparse.Namespace, evidence: Evidence) -> int:
    from largebatch.experiments.textbook.lesson.page import write_chapter

    try:
        shown = write_chapter(evidence, Path(options.out), title=options.title).evidence
    except OSError as error:
        print(f"largebatch textbook page: {error}. Choose another place with --out FILE.", file=sys.stderr)
        return EXIT_FAILED
    for one in (*shown.left_out, *shown.damaged):
        print(f"incomplete: {printable(one.path)}: {printable(one.reason)}", file=sys.stderr)
    print(options.out)
    return EXIT_IN_PART if shown.left_out or shown.damaged else EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch textbook page",
        description="The textbook chapter on batch size as one page that needs no network and no run: descent over a "
        "landscape, convergence, learning rate and batch size to play with, quick checks, tables, a flow chart and "
        "exercises.",
        epilog="With folders, the page also has everything that `largebatch report` shows of them, each experiment "
        "beside its theory; it then grows by 5 MB. Exit code 0: complete; 1: the page cannot be written; 2: wrong "
        "input; 3: stderr names what was left out or is damaged.",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", help="runs and results to show, with all folders below")
    parser.add_argument("--out", metavar="FILE", default="textbook.html", help="the page (default: textbook.html)")
    parser.add_argument("--title", metavar="TEXT", default="Batch size: the chapter", help="heading of the page")
    return parser

"""`largebatch study atlas [FILE...]`: critical batch sizes of published systems, and your own beside them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from largebatch.cli.arguments import with_arguments
from largebatch.cli.process.leaving import EXIT_DONE

if TYPE_CHECKING:
    from largebatch.records.result import Result


def main(arguments: Sequence[str]) -> int:
    """`[FILE...] [--out FOLDER]`; returns 0, or 2 for wrong input."""
    return with_arguments(_parser(), arguments, _read, _conclude)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch study atlas",
        description="Fit the critical batch size of published systems, with 95 % intervals and the error at batch "
        "sizes held out of the fit. Writes a table, atlas.json, a figure and a page.",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="CSV of your own, as for `study analyze`")
    parser.add_argument("--out", metavar="FOLDER", help="for atlas.json, figure and page.html; default: a new folder")
    return parser


def _read(options: argparse.Namespace) -> Result:
    from largebatch.experiments.study.atlas import atlas_result, read_atlas

    return atlas_result(read_atlas([Path(file) for file in options.files]))


def _conclude(options: argparse.Namespace, result: Result) -> int:
    from largebatch.experiments.study.csv_table import notes_of_unread
    from largebatch.records.report.publish import show_result, write_result, write_result_page
    from largebatch.records.run_folder import chosen_folder

    print("".join(f"{note}\n" for note in notes_of_unread([Path(file) for file in options.files])), end="")
    show_result(result)
    record = chosen_folder(options.out, "runs", "atlas") / "atlas.json"
    write_result(result, record, about={})
    write_result_page(record.parent, [record], title=result.title)
    return EXIT_DONE

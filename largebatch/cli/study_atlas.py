"""`largebatch study atlas [FILE...]`: the critical batch of published systems, and of one's own beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.records.regular_files import printable


def main(arguments: Sequence[str]) -> int:
    """`[FILE...] [--out FOLDER]`; returns 0, or 2 for wrong input."""
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as exit_:
        return EXIT_WRONG_INPUT if exit_.code else EXIT_DONE
    from largebatch.cli.study_analyze import tell_unread
    from largebatch.experiments.study import TableError
    from largebatch.experiments.study.atlas import atlas_result, read_atlas
    from largebatch.records.report.publish import show_result, write_result, write_result_page
    from largebatch.records.run_folder import new_folder

    try:
        result = atlas_result(read_atlas([Path(file) for file in options.files]))
    except (OSError, TableError) as error:
        print(f"largebatch study atlas: {printable(error, lines=True)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    for file in options.files:
        tell_unread(Path(file))
    show_result(result)
    record = (Path(options.out) if options.out else new_folder("runs", "atlas")) / "atlas.json"
    write_result(result, record, about={})
    write_result_page(record.parent, [record], title=result.title)
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch study atlas",
        description="Critical batch sizes of published systems, with 95 % intervals and the error at batch sizes that "
        "a fit has not seen: a table, atlas.json, a picture and a page.",
    )
    parser.add_argument("files", metavar="FILE", nargs="*", help="CSV of your own, as for `study analyze`")
    parser.add_argument("--out", metavar="FOLDER", help="where to; default: a new one")
    return parser

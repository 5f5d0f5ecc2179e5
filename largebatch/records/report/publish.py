"""How a verb presents a result: on the console, as JSON and pictures in a folder, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.records.durable_files import write_record
from largebatch.records.json_values import json_values
from largebatch.records.report.evidence import LeftOut
from largebatch.records.report.page import write_report
from largebatch.records.report.reading import read_records
from largebatch.records.result import FILES, Result


def show_result(result: Result) -> None:
    """Print tables and sentences."""
    from largebatch.records.trackers import print_table

    for table in result.tables:
        print_table(table.headers, table.rows, title=table.title)
    for line in (result.question, *result.sentences):
        if line:
            print(line)


def write_result(result: Result, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write the record, then the pictures, and print each path.

    Args:
        result: the finding.
        path: the record's, with a name among `FILES`.
        about: the origin of the numbers, as further keys of the record: config, environment, weights.
    """
    from largebatch.records.figures.draw_png import draw_panels

    kind, _ = FILES[path.name]
    print(write_record(path, json_values({"kind": kind} | result.record() | dict(about)), allow_nan=False))
    pictures = {f"{figure.name}.png": [figure] for figure in result.figures}
    if result.picture and result.figures:
        pictures = {result.picture: list(result.figures)}
    for name, figures in pictures.items():
        print(draw_panels(figures, path.parent / name, title=result.heading or result.title))


def write_result_page(
    folder: Path, records: Sequence[Path], *, title: str, left_out: Sequence[tuple[str, str]] = ()
) -> None:
    """Write page.html into the folder, and print its path.

    Args:
        folder: the one to write into.
        records: files that were written.
        title: its heading.
        left_out: (name, reason) of results that the page does not have.
    """
    evidence = read_records(records, [LeftOut(Path(what), why) for what, why in left_out])
    page = folder / "page.html"
    write_report(evidence, page, title=title)
    print(page)

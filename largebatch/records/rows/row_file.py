"""Reads files of rows, one JSON object per line, row by row: a file of a million rows takes no more memory than of ten.

A line that a kill, a full disk or an editor has damaged is passed over and counted; `trackers.jsonl` writes the files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from largebatch.records.regular_files import open_regular
from largebatch.records.renamed import OLD_METRIC, new_metric

Row = dict[str, float | int | str]
"""One line of metrics: always `step`, `samples_seen`, `epoch`, `wall_s`; then the measured values."""

MOST_BYTES = 2**24  # of a line: a file without line ends, such as a hole of a terabyte, is no file of rows
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Line(NamedTuple):
    """A line that is not empty.

    Attributes:
        number: from 1.
        start: its first byte in the file.
        text: its bytes, without the line's end.
        row: its content, non-finite numbers restored; None: it is no whole row.
        is_ended: whether the line's end is there: the last one may be just being written.
    """

    number: int
    start: int
    text: bytes
    row: Row | None
    is_ended: bool


def read_lines(path: str | Path, *, inside: Path | None = None) -> Iterator[Line]:
    """The lines of a file of rows in the order of writing.

    Args:
        path: the file.
        inside: a folder that a link must not lead out of.

    Raises:
        OSError: if it cannot be read, FileNotFoundError if it is not there.
        ValueError: if it is no regular file, or has a line of more than 16 MiB.
    """
    start = 0
    with open_regular(Path(path), inside=inside) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), start=1):
            if len(line) > MOST_BYTES:
                raise ValueError(
                    f"{Path(path).name}: line {number} has more than {MOST_BYTES:,} bytes: this is no file of rows."
                )
            if text := line.removesuffix(b"\n"):
                yield Line(number, start, text, parse_row(text), is_ended=line.endswith(b"\n"))
            start += len(line)


def parse_row(text: bytes) -> Row | None:
    """The row of a line, metrics of before by their present names; None if it is no whole JSON object."""
    try:
        row = json.loads(text.decode())  # a text: of bytes, the encoding is guessed first, which takes as long
    except (ValueError, RecursionError):  # brackets a million deep
        return None
    if not isinstance(row, dict):
        return None
    if b'"NaN"' in text or b'Infinity"' in text:
        row = {key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()}
    return {new_metric(key): value for key, value in row.items()} if OLD_METRIC.search(text) else row


def read_metrics(path: str | Path) -> list[Row]:
    """All rows of a file, or of metrics.jsonl in the folder of a run, in the order of writing.

    Numbers that are not finite are restored, lines that are no whole row skipped.
    `torn_lines` tells which; errors as of `read_lines`. Of a file of unknown size, read line by line instead.
    """
    file = Path(path, "metrics.jsonl") if os.path.isdir(path) else path
    return [line.row for line in read_lines(file) if line.row is not None]


def torn_lines(path: str | Path) -> list[int]:
    """The numbers, from 1, of the lines that are not a whole row: the process was killed, or the disk was full."""
    return [line.number for line in read_lines(path) if line.row is None]

"""metrics.jsonl, the record of truth: one JSON object per line, on disk before `log` returns.

Numbers are written so that they read back exactly. JSON has no NaN and no infinity, so these are the strings "NaN",
"Infinity" and "-Infinity"; `row_file` makes them numbers again. A row survives the death of the process
the moment `log` returns, and the loss of power after `force` or `finish`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from largebatch.records.durable_files import write_whole
from largebatch.records.line_file import LineFile
from largebatch.records.rows.row_file import Row, read_lines
from largebatch.records.trackers.tracker import Problems, plain_values

_COPIED_BYTES = 2**20  # at a time


class JsonlTracker:
    """Appends rows to `path`; the folder is created if need be.

    A last line torn by a kill keeps its place and the next row starts on a line of its own. What somebody does to the
    file meanwhile, see `LineFile`, is counted as well.

    Args:
        path: usually `RUN/metrics.jsonl`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file = LineFile(path)
        self._problems = Problems(self._path.name)

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Append one row. A full disk costs rows, never the run; rows are written again as soon as there is room."""
        with self._noting_news(), self._problems.counted("a row was lost"):
            self._file.append(_encode(plain_values(row, self._problems)))

    def come_back(self, folder: Path) -> None:
        """Write all rows again into a folder that was removed and made anew."""
        with self._problems.counted("its rows could not be written again"):
            self._file.come_back(folder / self._path.name)

    def force(self) -> None:
        """Force all rows so far to the disk."""
        with self._noting_news(), self._problems.counted("rows could not be forced to the disk"):
            self._file.sync()

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Force the file to the disk and close it. The summary and the plots have files of their own."""
        with self._noting_news(), self._problems.counted("the file could not be closed properly"):
            self._file.close()

    @contextlib.contextmanager
    def _noting_news(self) -> Iterator[None]:
        """Count the interventions in the file meanwhile."""
        yield
        while self._file.news:
            self._problems.count(self._file.news.pop(0), "")


def set_stale_rows_aside(
    path: str | Path, resume_at_step: int, *, comes_again: Callable[[Row], bool] = lambda row: False
) -> Path | None:
    """Move the rows after a resume point, and torn lines, from `path` to `NAME.stale-N.jsonl` beside it.

    So are the rows of that very step that `comes_again` names. The rows that stay are bit-identical, and the file is
    replaced in one go: a kill leaves the old or the new one. Returns the new file, or None where nothing was stale.

    Raises:
        OSError: if that cannot be written; the file is as it was.
    """
    path = Path(path)
    if not path.is_file():
        return None
    spans = list(_spans(path, resume_at_step, comes_again))
    if not any(span.is_stale for span in spans):
        return None
    aside = next(name for n in count(1) if not (name := path.with_name(f"{path.stem}.stale-{n}.jsonl")).exists())
    write_whole(aside, _content(path, [span for span in spans if span.is_stale]))
    write_whole(path, _content(path, [span for span in spans if not span.is_stale]))
    return aside


@dataclass
class _Span:
    """Bytes `start` to `end` of a file: lines that follow each other and have the same fate."""

    start: int
    end: int
    is_stale: bool


def _spans(path: Path, resume_at_step: int, comes_again: Callable[[Row], bool]) -> Iterator[_Span]:
    """A file of a million rows is a few of them."""
    span: _Span | None = None
    for line in read_lines(path):
        step = None if line.row is None else line.row.get("step", -math.inf)
        # A row without a step belongs to none; a step that is no number is damage, as a torn line is.
        is_stale = not (isinstance(step, (int, float)) and step <= resume_at_step)
        is_stale |= step == resume_at_step and line.row is not None and comes_again(line.row)
        if span is None or span.is_stale != is_stale or span.end != line.start:
            if span is not None:
                yield span
            span = _Span(line.start, line.start, is_stale)
        span.end = line.start + len(line.text) + line.is_ended
    if span is not None:
        yield span


def _content(path: Path, spans: Sequence[_Span]) -> Iterator[bytes]:
    """The spans of a file, each ended as a line is."""
    with path.open("rb") as file:
        for span in spans:
            file.seek(span.start)
            last = b""
            while part := file.read(min(span.end - file.tell(), _COPIED_BYTES)):
                yield part
                last = part[-1:]
            if last != b"\n":
                yield b"\n"


def _encode(row: Row) -> bytes:
    return json.dumps({key: _finite_or_name(value) for key, value in row.items()}, separators=(",", ":")).encode()


def _finite_or_name(value: float | int | str) -> float | int | str:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"

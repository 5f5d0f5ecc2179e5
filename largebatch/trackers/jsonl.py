"""metrics.jsonl, the record of truth: one JSON object per line, on disk before `log` returns.

Numbers are written so that they read back exactly. JSON has no NaN and no infinity, so these are the strings "NaN",
"Infinity" and "-Infinity"; `read_metrics` makes them numbers again. A row survives the death of the process
the moment `log` returns, and the loss of power after `finish`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from largebatch.durable_files import write_whole
from largebatch.line_file import LineFile
from largebatch.trackers.tracker import Problems, Row, plain_values

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JsonlTracker:
    """Appends rows to `path`; the folder is created if need be.

    A last line torn by a kill keeps its place and the next row starts on a line of its own. What somebody does to the
    file meanwhile, see `LineFile`, is counted as well.

    Args:
        path: usually `RUN/metrics.jsonl`.
        resume_at_step: the step of the checkpoint that the run goes on from. Rows with a later step will be
            produced again: they move to `metrics.stale-N.jsonl` beside the file. None appends.
    """

    def __init__(self, path: str | Path, *, resume_at_step: int | None = None) -> None:
        self._path = Path(path)
        self._file = LineFile(path)
        self._problems = Problems(self._path.name)
        if resume_at_step is not None:
            with self._problems.counted(f"rows after step {resume_at_step} could not be set aside"):
                set_stale_rows_aside(self._path, resume_at_step)

    @property
    def problems(self) -> list[str]:
        """What was lost, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Append one row. A full disk costs rows, never the run; rows are written again as soon as there is room."""
        with self._told(), self._problems.counted("a row was lost"):
            self._file.append(_encode(plain_values(row, self._problems)))

    def sync(self) -> None:
        """Force all rows to the disk: those of a checkpoint's own step are there before it is."""
        with self._told(), self._problems.counted("rows would not survive a loss of power"):
            self._file.sync()

    def come_back(self, folder: Path) -> None:
        """Write all rows again into a folder that was removed and made anew."""
        with self._problems.counted("its rows could not be written again"):
            self._file.come_back(folder / self._path.name)

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Force the file to the disk and close it. The summary and the plots have files of their own."""
        with self._told(), self._problems.counted("the file could not be closed properly"):
            self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Count what became of the file meanwhile."""
        yield
        while self._file.news:
            self._problems.count(self._file.news.pop(0), "")


def read_metrics(path: str | Path) -> list[Row]:
    """The rows of a metrics file in the order of writing, non-finite numbers restored. Torn lines are skipped.

    Raises FileNotFoundError if there is no such file. `torn_lines` tells what was skipped.
    """
    return [row for _, _, row in _lines(Path(path)) if row is not None]


def torn_lines(path: str | Path) -> list[int]:
    """The numbers, from 1, of the lines that are not a whole row: the process was killed, or the disk was full."""
    return [number for number, _, row in _lines(Path(path)) if row is None]


def set_stale_rows_aside(path: str | Path, resume_at_step: int) -> Path | None:
    """Move the rows after a resume point, and torn lines, from `path` to `NAME.stale-N.jsonl` beside it.

    The rows that stay are bit-identical, and the file is replaced in one go: a kill leaves the old or the new one.
    Returns the new file, or None where nothing was stale.
    """
    path = Path(path)
    if not path.is_file():
        return None
    kept: list[bytes] = []
    stale: list[bytes] = []
    for _, line, row in _lines(path):
        after = row is None or float(row.get("step", -math.inf)) > resume_at_step
        (stale if after else kept).append(line + b"\n")
    if not stale:
        return None
    aside = next(name for n in count(1) if not (name := path.with_name(f"{path.stem}.stale-{n}.jsonl")).exists())
    write_whole(aside, stale)
    write_whole(path, kept)
    return aside


def _encode(row: Row) -> bytes:
    return json.dumps({key: _finite_or_name(value) for key, value in row.items()}, separators=(",", ":")).encode()


def _finite_or_name(value: float | int | str) -> float | int | str:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _lines(path: Path) -> Iterator[tuple[int, bytes, Row | None]]:
    """(number from 1, bytes without the line's end, row or None if torn) of every line that is not empty."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            yield number, line, None
        else:
            yield number, line, {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}

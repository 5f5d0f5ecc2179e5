"""The protocol of trackers: they receive the rows of a run; they may lose rows, but never stop the run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from largebatch.records.credentials import redacted
from largebatch.records.rows.row_file import Row


class Tracker(Protocol):
    """Receives every row of a run, then its summary and pictures.

    Neither method raises for a full disk, a dead server or a value that cannot be stored: such trouble is
    counted in `problems`, one line per kind, empty when nothing was lost.
    """

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""

    def log(self, row: Row) -> None:
        """Take one row."""

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Take the results of the whole run and the paths of its pictures, and close. Called once."""


class Problems:
    """Counts trouble by kind. The first of each kind is one line on stderr; `lines()` is for the final summary.

    A kind is what failed together with the type of the error, so that a message that differs from row to row
    does not fill the screen: the first message stands for all.

    >>> problems = Problems("metrics.jsonl")
    >>> problems.count("a row was lost", OSError(28, "No space left on device"))
    >>> problems.count("a row was lost", OSError(28, "No space left on device"))
    >>> problems.lines()
    ['metrics.jsonl: a row was lost: OSError: [Errno 28] No space left on device (2 times)']
    """

    def __init__(self, tracker: str) -> None:
        self._tracker = tracker
        self._messages: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def count(self, what: str, cause: Exception | str) -> None:
        """Note one more failure of `what`; print it if it is the first of its kind."""
        name = type(cause).__name__ if isinstance(cause, Exception) else ""
        kind = (what, name)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if kind in self._messages:
            return
        text = redacted((str(cause).splitlines() or [""])[0])[:400]
        self._messages[kind] = ": ".join(part for part in (self._tracker, what, name, text) if part)
        with suppress(OSError, ValueError):  # stderr itself may be full, or closed
            print(f"warning: {self._messages[kind]}", file=sys.stderr)

    @contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Swallow and count any Exception of the block. KeyboardInterrupt and SystemExit still pass."""
        try:
            yield
        except Exception as error:
            self.count(what, error)

    def lines(self) -> list[str]:
        """One line per kind of trouble, with how often it happened; empty when all is well."""
        return [
            f"{message} ({self._counts[kind]} times)" if self._counts[kind] > 1 else message
            for kind, message in self._messages.items()
        ]


def plain_values(row: Mapping[str, object], problems: Problems) -> Row:
    """The numbers and texts of a row, without secrets; a 0-d array or tensor becomes its number.

    A value of another type is left out and counted: one bad value must not cost the rest of the row.

    >>> plain_values({"step": 3, "train/loss": 0.5}, Problems("x"))
    {'step': 3, 'train/loss': 0.5}
    """
    plain: Row = {}
    for key, value in row.items():
        if not isinstance(value, (int, float, str)):
            try:
                value = value.item()  # type: ignore[attr-defined]
            except Exception:  # no .item(), or more than one element
                value = None
        if isinstance(value, (int, float, str)):
            plain[key] = redacted(value) if isinstance(value, str) else value
        else:
            problems.count(f"the value of {key!r} was left out", f"{type(row[key]).__name__} is no number or text")
    return plain

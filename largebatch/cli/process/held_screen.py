"""Prints errors once per machine, and holds Hydra's output back until a better message replaces it."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

from largebatch.cli.process.leaving import EXIT_WRONG_INPUT

_HEAD_START_S = 3.0  # a launcher kills all ranks when the first one exits: the rank that prints must exit first


def _is_first_of_machine() -> bool:
    rank = os.environ.get("LOCAL_RANK", "")
    return not rank.isdecimal() or int(rank) == 0


def print_once(message: str) -> None:
    """Print a message to stderr, on one process per machine."""
    if _is_first_of_machine():
        print(f"largebatch: {message}", file=sys.stderr)


def refuse(*problems: str) -> int:
    """Print wrong input once per machine; returns its exit code. The other ranks of the machine wait until then."""
    for problem in problems:
        print_once(problem)
    if not _is_first_of_machine():
        time.sleep(_HEAD_START_S)
    return EXIT_WRONG_INPUT


class HeldScreen(io.StringIO):
    """Holds Hydra's output until it is dropped or released, once per machine; then passes everything on."""

    def __init__(self) -> None:
        super().__init__()
        self._screen = sys.stderr
        self._passes = False

    def write(self, text: str) -> int:
        """Hold the text; after the release, print it."""
        return self._screen.write(text) if self._passes else super().write(text)

    def drop(self) -> None:
        """Discard the held text."""
        self.truncate(0)

    def release(self) -> Any:
        """Print the held text; returns the screen that further output goes to."""
        if not self._passes and _is_first_of_machine():
            self._passes = True
            self._screen.write(self.getvalue())
        return self._screen

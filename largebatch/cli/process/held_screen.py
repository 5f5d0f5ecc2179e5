"""Holds Hydra's output back until a better message replaces it."""

from __future__ import annotations

import io
import sys
from typing import Any

from largebatch.cli.process.refusing import is_first_of_machine


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
        if not self._passes and is_first_of_machine():
            self._passes = True
            self._screen.write(self.getvalue())
        return self._screen

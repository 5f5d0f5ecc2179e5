"""Holds back what Hydra prints until it is known whether a better message replaces it."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

HEAD_START_S = 3.0  # a launcher kills all ranks when the first one leaves: the one that tells why must have done so


def is_first_of_machine() -> bool:
    """Whether this process is the one of its machine that says what all of them would."""
    rank = os.environ.get("LOCAL_RANK", "")
    return not rank.isdecimal() or int(rank) == 0


class HeldScreen(io.StringIO):
    """Keeps what Hydra prints until it is known whether there is more to say; then it passes everything on.

    Of Hydra's own errors one copy per machine is enough.
    """

    def __init__(self) -> None:
        super().__init__()
        self._screen = sys.stderr
        self._passes = False

    def write(self, text: str) -> int:
        """Keep the text, or print it once that is known."""
        return self._screen.write(text) if self._passes else super().write(text)

    def drop(self) -> None:
        """Forget what was held."""
        self.truncate(0)

    def release(self) -> Any:
        """Print what was held; returns the screen, where the rest goes."""
        if not self._passes and is_first_of_machine():
            self._passes = True
            self._screen.write(self.getvalue())
        return self._screen

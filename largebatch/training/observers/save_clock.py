"""When the next checkpoint is due by the clock."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

_MOST_OF_THE_TIME = 1 / 20  # goes into checkpoints that nobody asked for by their step


class SaveClock:
    """Says when a checkpoint is due: `every_s` seconds after the last one, or later where that one took long."""

    def __init__(self, every_s: float = math.inf) -> None:
        self._every_s = every_s
        self._due_at = time.monotonic() + every_s
        self._is_asked_for = False

    def is_due(self) -> bool:
        """Whether one is to be asked for now: once, until one is saved."""
        asks = not self._is_asked_for and time.monotonic() >= self._due_at
        self._is_asked_for |= asks
        return asks

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While one is saved, for whatever reason; the next one is due some time after."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._due_at = time.monotonic() + max(self._every_s, took / _MOST_OF_THE_TIME)
        self._is_asked_for = False

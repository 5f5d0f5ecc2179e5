"""Writes checkpoints beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """One thread that writes one thing at a time; nothing queues up.

    Not a daemon: a process that ends by itself first finishes its write.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a write is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, write: Callable[[], None]) -> None:
        """Call `write` in the thread."""
        assert not self.is_busy, "one write at a time"
        assert self._error is None, "ask for the last error before the next write"
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_error(self) -> Exception | None:
        """The error of the last write, which is then forgotten; None if it succeeded."""
        error, self._error = self._error, None
        return error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever it is, the training thread takes it
            self._error = error

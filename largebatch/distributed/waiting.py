"""Waiting with a limit, and the clock of those who wait for signs of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_LONGEST_PAUSE_S = 0.2  # between two polls


class AwakeClock:
    """Seconds during which this process ran, by calls that follow each other closely.

    A pause of the whole process counts as at most `longest_s`: a batch system suspends all processes of a job at once,
    and afterwards nobody else has been silent.

    Args:
        longest_s: between two calls of a process that runs.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s, self._at, self._awake_s = longest_s, time.monotonic(), 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """The seconds so far."""
        with self._lock:
            now = time.monotonic()
            self._awake_s += min(now - self._at, self._longest_s)
            self._at = now
            return self._awake_s


def within(seconds: float, call: Callable[[], T]) -> T:
    """Result of `call`, run in its own thread, which is abandoned after `seconds`.

    Torch's stores wait inside C++ for a peer that does not answer, regardless of their own timeout. Meanwhile the main
    thread would handle no signal.

    Raises:
        TimeoutError: of concurrent.futures, if the call takes longer. Errors of the call propagate.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def growing_pauses() -> Iterator[float]:
    """Growing pauses in seconds, short at first, so that ranks that start together lose no time."""
    pause = 0.005
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)

"""A limit for calls that may wait for ever."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class Late(BaseException):
    """No Exception, and above all no OSError: code under test turns those into reasons, and goes on."""


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise Late in this thread after so many seconds, also out of a system call that waits."""

    def give_up(*_: object) -> None:
        raise Late(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

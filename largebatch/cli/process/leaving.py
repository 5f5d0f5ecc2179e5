"""Exit codes, and a prompt end of the process in every state."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from typing import NoReturn

from largebatch.distributed.signals import STOP_SIGNALS, kill_children

EXIT_DONE = 0
EXIT_FAILED = 1  # an error, or a run that diverged; for a verb that answers a question: no
EXIT_WRONG_INPUT = 2
EXIT_IN_PART = 3  # an incomplete report
EXIT_UNSAVED = 74  # finished or stopped, but the last weights are not on the disk: a scheduler must not requeue it
EXIT_STOPPED = 75  # by SIGTERM, SIGUSR1 or SIGHUP: the same command with resume=auto continues
EXIT_INTERRUPTED = 130  # by Ctrl-C; the same command with resume=auto continues
EXIT_UNREAD = 141  # the reader of the output has closed the pipe; a shell shows SIGPIPE like this

LEAVING_S = 5.0


def code_of(signal_name: str | None) -> int:
    """The exit code of a run or verb that a signal has stopped, here or on another rank.

    >>> code_of("SIGINT"), code_of("SIGTERM"), code_of(None)
    (130, 75, 75)
    """
    return EXIT_INTERRUPTED if signal_name == "SIGINT" else EXIT_STOPPED


def report_interrupted(error: KeyboardInterrupt) -> int:
    """Print the name of the signal that has ended a verb; returns the exit code."""
    name = getattr(error, "signal_name", "SIGINT")
    print(f"largebatch: interrupted by {name}", file=sys.stderr)
    return code_of(name)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without finalizing the interpreter.

    Finalizing costs a fifth of the time that importing torch takes. It also aborts the process if a gloo thread that
    frees its last tensors asks for the GIL meanwhile. torch 2.13 then prints "terminate called without an active
    exception", and torchrun takes the rank for a failed one.

    Order: a checkpoint that is being written in the background is finished first, unless a stop signal comes (only
    without a launcher: a rank never waits). Then all other threads and exit functions, of trackers or multiprocessing,
    have `LEAVING_S` seconds together. After that this process and its children are killed.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        for thread in threading.enumerate() if is_alone else ():
            if thread.name == "checkpoint":
                thread.join()
    except KeyboardInterrupt as error:
        code = report_interrupted(error)
    for name in STOP_SIGNALS:  # the process is already ending
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    limit = threading.Timer(LEAVING_S, _end, (code,))
    limit.daemon = True
    limit.start()
    if is_alone:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does: joins threads, ends thread pools
    atexit._run_exitfuncs()
    _end(code)


def _end(code: int) -> NoReturn:
    kill_children()
    for screen in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            screen.flush()
    os._exit(code)

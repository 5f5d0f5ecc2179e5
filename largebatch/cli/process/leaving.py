"""Exit codes, and a prompt end of the process whatever it is doing."""

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
EXIT_FAILED = 1  # an error, a run that diverged; and where a verb answers a question: no
EXIT_WRONG_INPUT = 2
EXIT_IN_PART = 3  # a report without what could not be drawn
EXIT_UNSAVED = 74  # finished or stopped, but its last weights are not on the disk: it is not gone on with by itself
EXIT_STOPPED = 75  # by SIGTERM, SIGUSR1 or SIGHUP: the same command, with resume=auto, goes on from what is saved
EXIT_INTERRUPTED = 130  # by Ctrl-C, likewise
EXIT_UNREAD = 141  # whoever read the output has left, as a shell shows it for SIGPIPE

LEAVING_S = 5.0


def code_of(signal_name: str | None) -> int:
    """The exit code of what a signal has stopped, here or on another rank.

    >>> code_of("SIGINT"), code_of("SIGTERM"), code_of(None)
    (130, 75, 75)
    """
    return EXIT_INTERRUPTED if signal_name == "SIGINT" else EXIT_STOPPED


def tell_interrupted(error: KeyboardInterrupt) -> int:
    """Say which signal has ended a verb; returns its exit code."""
    name = getattr(error, "signal_name", "SIGINT")
    print(f"largebatch: interrupted by {name}", file=sys.stderr)
    return code_of(name)


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without taking the interpreter apart.

    That would cost a fifth of the time that importing torch took; and a thread of gloo that lets go of its last tensors
    needs the GIL, and a thread that asks for the GIL while the interpreter ends aborts the process: seen with torch
    2.13 as "terminate called without an active exception", and taken for a failed rank by torchrun.

    A checkpoint that is being written in the background is finished first, unless a stop signal comes; a rank waits for
    nobody. Everything else, threads and exit functions of others (of trackers, of multiprocessing, which waits for its
    processes), has `LEAVING_S` seconds together: then this process and the processes that it has started are ended.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        for thread in threading.enumerate() if is_alone else ():
            if thread.name == "checkpoint":
                thread.join()
    except KeyboardInterrupt as error:
        code = tell_interrupted(error)
    for name in STOP_SIGNALS:  # it is about to end already
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    limit = threading.Timer(LEAVING_S, _end, (code,))
    limit.daemon = True
    limit.start()
    if is_alone:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does: joins, and ends pools of threads
    atexit._run_exitfuncs()
    _end(code)


def _end(code: int) -> NoReturn:
    kill_children()
    for screen in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            screen.flush()
    os._exit(code)

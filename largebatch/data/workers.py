"""Worker processes that load data: they ignore the stop signals of the run, and none outlives its parent."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize

from largebatch.distributed.signals import STOP_SIGNALS, end_with_starter, kill_children

_GROUP_SIGNALS = tuple(getattr(signal, name) for name in STOP_SIGNALS)
_FINALIZERS: dict[int, Finalize] = {}  # by process id: a fork must not reuse those of its parent


@contextmanager
def start_of_workers() -> Iterator[None]:
    """Start workers with the stop signals blocked, so that a signal cannot kill a worker before it is ready.

    Also remove the DataLoader's handler of SIGCHLD, which raises at an arbitrary line when a worker dies. In a
    `__del__` the error would be lost; in the middle of writing a file it would do harm. Without the handler a dead
    worker is noticed when its data are awaited.

    At the exit of this process the workers end first.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        atexit.unregister(end_workers)
        atexit.register(end_workers)  # called first, since it is registered last
        if os.getpid() not in _FINALIZERS:  # a multiprocessing child, such as a study's, calls only finalizers
            _FINALIZERS[os.getpid()] = Finalize(None, end_workers, exitpriority=0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def leave_signals_to_the_run(worker: int) -> None:
    """Let a worker survive a signal that a launcher sends to the whole process group, so the run can finish its step.

    A worker ignores only the first SIGTERM, because the loader sends a second one to a worker that does not answer. A
    worker that hangs in a sample never checks whether its parent is alive, so the kernel ends it with the parent.
    """
    end_with_starter()
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda received, frame: signal.signal(received, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)  # blocked since before the worker started


def end_workers() -> None:
    """End all workers, before torch and multiprocessing do so by SIGTERM.

    A worker ignores one SIGTERM. Two that arrive before Python handles the first count as one, and multiprocessing
    would wait for the worker forever: seen when a run that diverged left its loader in the middle of an epoch.
    """
    kill_children(daemons_only=True)

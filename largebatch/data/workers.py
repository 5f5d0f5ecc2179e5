"""Processes that load data: they leave signals to the run, and none of them outlives its process."""

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
_FINALIZERS: dict[int, Finalize] = {}  # by process: a fork forgets those of its parent


@contextmanager
def start_of_workers() -> Iterator[None]:
    """Start workers with the stop signals held back: one that comes before a worker is ready must not kill it.

    Also undo the DataLoader's handler of SIGCHLD, which raises wherever the program happens to be when a worker dies.
    In a `__del__` such an error is lost, in the middle of writing a file it does harm. Without the handler a dead
    worker is noticed when its data are waited for.

    When this process ends, they end first of all.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        atexit.unregister(end_workers)
        atexit.register(end_workers)  # the last one registered is the first one called
        if os.getpid() not in _FINALIZERS:  # a process of multiprocessing, such as a study's, calls only these
            _FINALIZERS[os.getpid()] = Finalize(None, end_workers, exitpriority=0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def leave_signals_to_the_run(worker: int) -> None:
    """Let a worker outlive the signal that a launcher sends to the whole process group: the run finishes its step.

    The first SIGTERM only: a second one is how the loader ends a worker that does not answer. One that hangs in a
    sample never looks whether its process is still there: the kernel ends it with that.
    """
    end_with_starter()
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda received, frame: signal.signal(received, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)  # held back since before the worker was born


def end_workers() -> None:
    """End all workers, before torch and then multiprocessing ask for it with SIGTERM.

    A worker leaves one SIGTERM to the run. Two that come before its Python looks are one to it, and multiprocessing
    would wait for it forever: seen where a run that diverged left its loader in the middle of an epoch.
    """
    kill_children(daemons_only=True)

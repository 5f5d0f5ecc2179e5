"""Signals that ask to stop: a run finishes its step, saves and leaves; what has nothing to save leaves at once."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
ECHO_S = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_launcher() -> None:
    """Have the kernel end this process with the torchrun that has started it, however that one ends.

    Torchrun stops its ranks when it is asked to stop; killed, it cannot, and they would go on without anybody to
    collect them. SIGKILL, because a rank that hangs heeds nothing else, and checkpoints are whole at any moment.
    Without torchrun nothing happens: ranks started by hand may be meant to outlive their shell.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process by SIGKILL when the thread that has started it ends, on Linux.

    Args:
        parent: id of the process that has started this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """Have this process, one of multiprocessing, end with the one that has started it, whatever has forked it."""
    starter = multiprocessing.parent_process()
    if starter is None or starter.pid is None:
        return
    if sys.platform == "linux" and os.getppid() == starter.pid:
        end_with_parent(starter.pid)
    else:  # of a fork server, which outlives it
        threading.Thread(target=_end_after, args=(starter.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class Stopped(KeyboardInterrupt):
    """A stop signal ends what this process is doing, now.

    Attributes:
        signal_name: of the signal that came first.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


def kill_children(*, daemons_only: bool = False) -> None:
    """End the processes that this one has started by multiprocessing, or by a library of its kind, at once.

    By their numbers: processes of other libraries, such as joblib's, have no `kill`.
    """
    for process in multiprocessing.active_children():
        if process.pid is not None and (process.daemon or not daemons_only):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def heeded_signals() -> list[int]:
    """Numbers of the stop signals, without a SIGHUP that `nohup` has this process ignore."""
    numbers = [int(getattr(signal, name)) for name in STOP_SIGNALS]
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in numbers if not (is_nohup and number == signal.SIGHUP)]


def stop_at_once() -> None:
    """Have every stop signal raise `Stopped`, wherever this process is: for one that has nothing to save.

    A `StopRequest` takes over while a run trains. Call it in the main thread.
    """
    for number in heeded_signals():
        signal.signal(number, _raise_stopped)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


class StopRequest:
    """Context manager that turns the first stop signal into a flag; a second one raises `Stopped`.

    The same signal again within `ECHO_S` seconds is the first one once more: a terminal and a batch system signal all
    processes of a job, and torchrun then hands on what it got to ranks that have it already.

    Only the main thread of a process may receive signals: a run in another thread, of a notebook's widget say, is not
    stopped by them.

    The flag is local to this process. The loop adds it up over ranks, so that all of them stop after the same step even
    if only one was signalled.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in heeded_signals():
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_name is None:
            self.signal_name, self._first_at = name, time.monotonic()
        elif name != self.signal_name or time.monotonic() - self._first_at > ECHO_S:
            raise Stopped(self.signal_name)

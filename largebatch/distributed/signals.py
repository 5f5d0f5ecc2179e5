"""Stop signals: a run finishes its step, saves and exits; a process with nothing to save exits at once."""

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
    """Have the kernel end this process when the torchrun that started it ends, for any reason.

    Torchrun stops its ranks when it is asked to stop. If it is killed it cannot, and its ranks would live on as
    orphans. SIGKILL, because a hanging rank heeds nothing else, and checkpoints are complete at any moment. Without
    torchrun this does nothing: ranks started by hand may be meant to outlive their shell.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(os.getppid())


def end_with_parent(parent: int) -> None:
    """On Linux, have the kernel end this process by SIGKILL when the thread that started it ends.

    Args:
        parent: id of the process that started this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """Have this multiprocessing child end with the process that started it, whichever process forked it."""
    starter = multiprocessing.parent_process()
    if starter is None or starter.pid is None:
        return
    if sys.platform == "linux" and os.getppid() == starter.pid:
        end_with_parent(starter.pid)
    else:  # forked by a fork server, which outlives the starter
        threading.Thread(target=_end_after, args=(starter.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class Stopped(KeyboardInterrupt):
    """A stop signal interrupts this process at once.

    Attributes:
        signal_name: name of the first signal.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


def kill_children(*, daemons_only: bool = False) -> None:
    """Kill the children that this process started by multiprocessing or a library built on it.

    Kills by process id, since processes of other libraries, such as joblib, have no `kill`.
    """
    for process in multiprocessing.active_children():
        if process.pid is not None and (process.daemon or not daemons_only):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def heeded_signals() -> list[int]:
    """Numbers of the stop signals, without SIGHUP under `nohup`."""
    numbers = [int(getattr(signal, name)) for name in STOP_SIGNALS]
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in numbers if not (is_nohup and number == signal.SIGHUP)]


def stop_at_once() -> None:
    """Have every stop signal raise `Stopped` at once, for a process that has nothing to save.

    A `StopRequest` takes over while a run trains. Call this in the main thread.
    """
    for number in heeded_signals():
        signal.signal(number, _raise_stopped)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


class StopRequest:
    """Context manager that turns the first stop signal into a flag; a second one raises `Stopped`.

    The same signal within `ECHO_S` seconds counts as a repeat of the first: a terminal or batch system signals all
    processes of a job, and torchrun forwards the signal to ranks that already have it.

    Python delivers signals to the main thread only: a run in another thread, for example of a notebook widget, is not
    stopped by them.

    The flag is local to this process. The loop sums it over ranks, so that all of them stop after the same step even if
    only one was signalled.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a stop was requested."""
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

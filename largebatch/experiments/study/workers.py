"""Runs of a study side by side: processes of one thread each, which live as long as the study does and no longer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

from largebatch.distributed.signals import STOP_SIGNALS, end_with_starter, kill_children
from largebatch.experiments.study.protocol import Job, Row
from largebatch.records.credentials import redact_screens

Work = Callable[[Job, Callable[[], bool]], Row | None]  # job, stop -> row; None: it was stopped
_WAIT_S = 0.5  # until a stop that came from outside is seen
_SIGNALS = {getattr(signal, name) for name in STOP_SIGNALS}  # handled by the parent


def run_here(work: Work, next_job: Callable[[list[str]], Job | None], stop: Callable[[], bool]) -> Iterator[Row]:
    """One run after the other in this process."""
    while not stop() and (job := next_job([])) is not None:
        row = work(job, stop)
        if row is not None:
            yield row


def run_side_by_side(
    work: Work, next_job: Callable[[list[str]], Job | None], stop: Callable[[], bool], *, workers: int
) -> Iterator[Row]:
    """Keep `workers` runs going. A job is chosen when a worker is free, from all rows that are known by then.

    A stop kills every worker at once, and so does the end of their parent. An unfinished run gives no row, and is made
    again from its beginning.

    Raises:
        BrokenProcessPool: if a worker was killed; finished rows have been yielded.
    """
    with _single_threaded():
        context = _context()
        if _wait_until_ready(context, stop):
            yield from _share_out(context, work, next_job, stop, workers)


def _wait_until_ready(context: BaseContext, stop: Callable[[], bool]) -> bool:
    """Wait until processes can be started, once torch is imported; False: a stop came before."""
    if context.get_start_method() != "forkserver":
        return not stop()
    first = threading.Thread(target=context.Process(target=int).start, daemon=True)  # type: ignore[attr-defined]
    first.start()
    while first.is_alive() and not stop():
        first.join(_WAIT_S)
    return not stop()


def _share_out(
    context: BaseContext,
    work: Work,
    next_job: Callable[[list[str]], Job | None],
    stop: Callable[[], bool],
    workers: int,
) -> Iterator[Row]:
    given = work, multiprocessing.get_start_method()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=given)
    pending: dict[Future[Row | None], str] = {}
    try:
        while True:
            while not stop() and len(pending) < workers and (job := next_job(list(pending.values()))) is not None:
                pending[pool.submit(_work, job)] = job.name
            if not pending:
                return
            is_last = stop()  # before the wait: runs that have ended by now are taken
            done, _ = wait(pending, timeout=0.0 if is_last else _WAIT_S, return_when=FIRST_COMPLETED)
            for future in done:
                del pending[future]
                if (row := future.result()) is not None:
                    yield row
            if is_last:
                break
        kill_children()
    except BaseException:  # nobody takes their rows any more; the pool waits for them, and SIGTERM is not theirs
        kill_children()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread for processes that are started inside: torch reads the variable at its import."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _context() -> BaseContext:
    """How workers start: on Linux as forks of one process that has imported what a run needs, and no more.

    An import in each of them would take seconds, on as many cores as there are workers. That process has touched no
    GPU, has no threads, and ends with the last worker. A stop signal, which a terminal sends to all, must not end it.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["largebatch.experiments.fork_preload"])
    resource_tracker.ensure_running()  # before: it lets signals through when it has started
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return context


_state: dict[str, Any] = {}  # of a worker


def _begin(work: Work, start_method: str) -> None:
    """Set up a worker: it ignores stop signals, ends with its parent, and starts loading processes as that does."""
    multiprocessing.set_start_method(start_method, force=True)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # as they were held back by the process that forked this one
    end_with_starter()
    redact_screens()
    _state["work"] = work


def _work(job: Job) -> Row | None:
    work: Work = _state["work"]
    return work(job, lambda: False)  # a stop kills


__all__ = ["BrokenProcessPool", "Work", "run_here", "run_side_by_side"]

"""An iterator whose next items a thread prepares."""

from __future__ import annotations

import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from largebatch.distributed.signals import STOP_SIGNALS

Item = TypeVar("Item")

_END_S = 5.0  # a read from a disk that hangs must not keep the process from ending


class Ahead(Iterator[Item], Generic[Item]):
    """The items of `items` in their order, up to `depth` of which a thread prepares before they are asked for.

    An error is raised where the item would have come. The thread ends with the last item, with an error, by `close`,
    with the last reference to this object, or at the exit of the process, whichever comes first.

    Args:
        items: advanced by the thread alone, so it must not draw from the generators of the process.
        depth: most items that are prepared and not yet taken, 1 or more.
        begin: called first in the thread.
    """

    def __init__(self, items: Iterator[Item], depth: int, *, begin: Callable[[], None] = lambda: None) -> None:
        self._prepared: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._free, stop = threading.Semaphore(depth), threading.Event()
        self._is_over = False
        args = items, self._prepared, self._free, stop, begin
        self._thread = threading.Thread(target=_prepare, args=args, name="largebatch-data", daemon=True)
        self._end = weakref.finalize(self, _end, self._thread, self._free, stop)
        self._thread.start()

    def __next__(self) -> Item:
        """The next item; waits for it if the thread has not come that far."""
        if self._is_over:
            raise StopIteration
        item, error = self._prepared.get()
        if error is not None:
            self._is_over = True
            raise error
        self._free.release()
        return item

    def close(self) -> bool:
        """End the iterator and the thread; whether the thread has ended. It may hang in a read: 5 s are waited."""
        self._is_over = True
        self._end()
        return not self._thread.is_alive()


def _prepare(
    items: Iterator[Any],
    prepared: queue.SimpleQueue[tuple[Any, BaseException | None]],
    free: threading.Semaphore,
    stop: threading.Event,
    begin: Callable[[], None],
) -> None:
    # Left to the main thread, whose wait in a system call a signal has to interrupt.
    signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in STOP_SIGNALS])
    try:
        begin()
        while free.acquire() and not stop.is_set():
            prepared.put((next(items), None))
    except BaseException as error:  # the end is one, too: StopIteration
        prepared.put((None, error))


def _end(thread: threading.Thread, free: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    free.release()
    if thread is not threading.current_thread():
        thread.join(_END_S)

"""Processes that load the micro-batches of requested sample ids from a map-style data set."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError
from largebatch.data.items import KeyedItems, Loaded, SampleRequest, WorkerFailure
from largebatch.data.micro_batch import Request
from largebatch.data.workers import leave_signals_to_the_run, start_of_workers

_PREFETCH_PER_WORKER = 2
_START_S = (60.0, 60.0, 60.0)  # of each attempt; a process reports within milliseconds of its fork


class WorkerPool:
    """Worker processes of a torch DataLoader that outlive the iterators.

    Args:
        items: what they load.
        num_workers: how many; affects only speed.
        timeout_s: seconds to wait for data before the workers count as hanging; 0 waits forever.
    """

    def __init__(self, items: KeyedItems, num_workers: int, *, timeout_s: float) -> None:
        self._items, self._num_workers, self._timeout_s = items, num_workers, timeout_s
        self._sampler = _RequestSampler()
        self._loader: DataLoader[Any] | None = None
        self._processes: list[Any] = []

    def start(self) -> None:
        """Fork the workers, unless they run already; in the main thread, and before a process group, if possible.

        A fork copies one thread, and locks as they are. CPython 3.11 then takes the lock of its list of threads, for
        ever if another thread held it: a native one that was entering Python, as callbacks of collectives do. (2 of
        5,000 forks hung so beside two threads that did nothing else.) So each worker has to report. If one does not,
        all are killed and forked anew.

        Raises:
            DataError: if one does not, several times.
        """
        if self._loader is not None:
            return
        for limit_s in _START_S:
            loader, alive = self._new_loader()
            before = multiprocessing.active_children()
            with start_of_workers():
                iter(loader)
            self._processes = [one for one in multiprocessing.active_children() if one not in before]
            deadline = time.monotonic() + limit_s
            if all(alive.acquire(timeout=max(deadline - time.monotonic(), 0)) for _ in range(self._num_workers)):
                self._loader = loader
                return
            self.close()
        raise DataError(
            f"Some of {self._num_workers} workers gave no sign of life within {_START_S[-1]:g} s of their fork, "
            f"{len(_START_S)} times. Look at the load and the memory of this machine, or load without workers: "
            "data.num_workers=0."
        )

    def _new_loader(self) -> tuple[DataLoader[Any], Any]:
        """A loader, and the semaphore that each of its workers raises when it lives."""
        alive = multiprocessing.Semaphore(0)
        return DataLoader(
            self._items,
            batch_sampler=self._sampler,
            num_workers=self._num_workers,
            collate_fn=_as_loaded,
            timeout=self._timeout_s,
            prefetch_factor=_PREFETCH_PER_WORKER,
            persistent_workers=True,
            worker_init_fn=partial(_begin, alive),
            # The loader draws a seed whenever it starts. Its own generator keeps the run's unchanged.
            generator=torch.Generator(),
        ), alive

    def load(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Loaded]]:
        """Each request with what was loaded for it, in order. A new call ends what an earlier one had begun."""
        self.start()
        assert self._loader is not None
        self._sampler.requests = requests
        self._sampler.issued.clear()
        batches: Iterator[Any] | None = None
        while True:
            try:
                batches = iter(self._loader) if batches is None else batches
                loaded = next(batches)
            except StopIteration:
                return
            # A worker hangs or was killed. If it was killed while sending a batch, the connection breaks instead.
            except (RuntimeError, OSError, EOFError) as error:
                raise DataError(self._died(error)) from error
            request = self._sampler.issued.popleft()
            if isinstance(loaded, WorkerFailure):
                raise DataError(loaded.message) from RuntimeError(f"in a worker process:\n{loaded.worker_traceback}")
            yield request, loaded

    def close(self) -> None:
        """End the workers. At once: a worker that hangs would hold up the loader's own way for 10 s."""
        for process in self._processes:
            process.kill()
            process.join()

    def _died(self, error: Exception) -> str:
        waiting = [request.ids for request in self._sampler.issued]
        samples = name_samples(np.concatenate(waiting)) if waiting else "their first samples"
        return (
            f"No data from the workers ({type(error).__name__}: {error}) while they loaded {samples}. If a "
            f"worker was killed, memory (also of /dev/shm) may be too small: use fewer workers. If it hangs, check how "
            f"these samples are read; timeout_s={self._timeout_s:g} bounds the wait."
        )


class _RequestSampler:
    """Passes requests to the DataLoader as lists of samples, and keeps the requests that are still pending."""

    def __init__(self) -> None:
        self.requests: Iterator[Request] = iter(())
        self.issued: deque[Request] = deque()

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for request in self.requests:
            self.issued.append(request)
            yield request.pairs


def name_samples(ids: Int64Array) -> str:
    """The first ids, and how many more there are, as text."""
    shown = ", ".join(map(str, ids[:8].tolist()))
    return f"samples {shown}{f' and {len(ids) - 8} more' if len(ids) > 8 else ''}"


def _begin(alive: Any, worker: int) -> None:
    leave_signals_to_the_run(worker)
    alive.release()


def _as_loaded(batch: Any) -> Any:
    return batch

"""Processes that load the micro-batches of requested sample ids from a map-style data set."""

from __future__ import annotations

import multiprocessing
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
_START_S = 120.0  # a process reports within milliseconds of its fork


class WorkerPool:
    """Worker processes of a torch DataLoader that outlive the iterators.

    Args:
        items: what they load.
        num_workers: how many; affects only speed.
        timeout_s: seconds to wait for data before the workers count as hanging; 0 waits forever.
    """

    def __init__(self, items: KeyedItems, num_workers: int, *, timeout_s: float) -> None:
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._sampler = _RequestSampler()
        self._alive = multiprocessing.Semaphore(0)
        self._processes: list[Any] = []
        self._loader: DataLoader[Any] = DataLoader(
            items,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=_as_loaded,
            timeout=timeout_s,
            prefetch_factor=_PREFETCH_PER_WORKER,
            persistent_workers=True,
            worker_init_fn=partial(_begin, self._alive),
            # The loader draws a seed whenever it starts. Its own generator keeps the run's unchanged.
            generator=torch.Generator(),
        )

    def start(self) -> None:
        """Fork the workers, unless they run already; in the main thread, before the process has many others.

        A fork copies one thread. Locks that others hold at that moment, of gloo, NCCL or CUDA, stay locked in the
        child. So the workers of a run start before its process group, and each of them has to report.

        Raises:
            DataError: if one does not.
        """
        if self._processes:
            return
        before = multiprocessing.active_children()
        with start_of_workers():
            iter(self._loader)
        self._processes = [one for one in multiprocessing.active_children() if one not in before]
        silent = sum(not self._alive.acquire(timeout=_START_S) for _ in range(self._num_workers))
        if silent:
            raise DataError(
                f"{silent} of {self._num_workers} workers gave no sign of life within {_START_S:g} s of their fork. "
                "Start the run again; if it happens again, set data.num_workers=0, and report it."
            )

    def load(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Loaded]]:
        """Each request with what was loaded for it, in order. A new call ends what an earlier one had begun."""
        self.start()
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

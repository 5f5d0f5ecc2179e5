"""Load the micro-batches of requested sample ids, in this process or through workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError
from largebatch.data.items import (
    Augment,
    Inputs,
    KeyedItems,
    Loaded,
    SampleRequest,
    WorkerFailure,
    augment_inputs,
)
from largebatch.data.micro_batch import MicroBatchData, Request
from largebatch.data.subset import OneByOne
from largebatch.data.workers import leave_signals_to_the_run, start_of_workers

_PREFETCH_PER_WORKER = 2


class BatchSource:
    """Loads requested micro-batches in order, with only a few in memory at a time.

    Args:
        dataset: in memory (has `fetch`), or map-style.
        augment, num_workers, pin_memory, seed, timeout_s, skips: see `MicroBatchLoader`.
        stream: name of the random stream that keys the items.

    Raises:
        ValueError: if a setting would have no effect, or the data set has no samples by index.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        augment: Augment | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        stream: str,
        timeout_s: float,
        skips: bool = False,
    ) -> None:
        in_memory = hasattr(dataset, "fetch")
        _check_settings(dataset, in_memory=in_memory, num_workers=num_workers, timeout_s=timeout_s)
        if pin_memory and not torch.accelerator.is_available():
            raise ValueError("pin_memory=True has no effect without a GPU. Set it to False.")
        self._dataset = dataset
        self._augment = augment
        self._pin_memory = pin_memory
        self._timeout_s = timeout_s
        samples = OneByOne(dataset) if in_memory else dataset
        items = KeyedItems(samples, seed=seed, stream=stream, augment=augment, skips=skips)
        self._items = None if in_memory else items
        self._one_by_one = items if in_memory else None
        self._skips = skips
        self._sampler = _RequestSampler()
        self._loader = self._start_loader(num_workers) if num_workers else None
        self._num_calls = 0

    def load(self, requests: Iterator[Request]) -> Iterator[MicroBatchData]:
        """One loaded micro-batch per request, in order.

        All iterators share the workers: a new call ends earlier iterators, which then raise RuntimeError.
        """
        self._num_calls += 1
        batches = self._in_this_process(requests) if self._loader is None else self._through_workers(requests)
        return self._while_current(batches, self._num_calls)

    def _while_current(self, batches: Iterator[MicroBatchData], call: int) -> Iterator[MicroBatchData]:
        while True:
            if call != self._num_calls:
                raise RuntimeError("A later call of `load` ended these micro-batches: use one iterator at a time.")
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _in_this_process(self, requests: Iterator[Request]) -> Iterator[MicroBatchData]:
        for request in requests:
            loaded = self._fetch(request) if self._items is None else self._items.load(_pairs(request))
            inputs, targets, skipped = loaded
            if self._pin_memory:
                inputs, targets = _pinned(inputs), targets.pin_memory()
            yield request.filled(inputs, targets, skipped)

    def _fetch(self, request: Request) -> Loaded:
        try:
            inputs, targets = self._dataset.fetch(request.ids)
        except Exception as error:
            assert self._one_by_one is not None
            loaded = self._one_by_one.load(_pairs(request))  # skips the sample at fault, or names it
            if self._skips:
                return loaded
            raise DataError(f"{_name(request.ids)} cannot be loaded: {type(error).__name__}: {error}") from error
        if self._augment is not None:
            inputs = augment_inputs(self._augment, inputs, request.ids, request.epochs)
        return inputs, targets, []

    def _through_workers(self, requests: Iterator[Request]) -> Iterator[MicroBatchData]:
        self._sampler.requests = requests
        self._sampler.issued.clear()
        assert self._loader is not None
        with start_of_workers():
            batches = iter(self._loader)
        while True:
            try:
                loaded: Any = next(batches)
            except StopIteration:
                return
            # A worker hangs or was killed. If it was killed while sending a batch, the connection breaks instead.
            except (RuntimeError, OSError, EOFError) as error:
                raise DataError(self._worker_died(error)) from error
            request = self._sampler.issued.popleft()
            if isinstance(loaded, WorkerFailure):
                raise DataError(loaded.message) from RuntimeError(f"in a worker process:\n{loaded.worker_traceback}")
            yield request.filled(*loaded)

    def _worker_died(self, error: Exception) -> str:
        waiting = np.concatenate([request.ids for request in self._sampler.issued])
        return (
            f"No data from the workers ({type(error).__name__}: {error}) while they loaded {_name(waiting)}. If a "
            f"worker was killed, memory (also of /dev/shm) may be too small: use fewer workers. If it hangs, check how "
            f"these samples are read; timeout_s={self._timeout_s:g} bounds the wait."
        )

    def _start_loader(self, num_workers: int) -> DataLoader[Any]:
        assert self._items is not None
        return DataLoader(
            self._items,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=_as_loaded,
            pin_memory=self._pin_memory,
            timeout=self._timeout_s,
            prefetch_factor=_PREFETCH_PER_WORKER,
            persistent_workers=True,
            worker_init_fn=leave_signals_to_the_run,
            # The loader draws a seed whenever it starts. Its own generator keeps the run's unchanged.
            generator=torch.Generator(),
        )


class _RequestSampler:
    """Passes requests to the DataLoader as lists of samples, and keeps the requests that are still pending."""

    def __init__(self) -> None:
        self.requests: Iterator[Request] = iter(())
        self.issued: deque[Request] = deque()

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for request in self.requests:
            self.issued.append(request)
            yield _pairs(request)


def _check_settings(dataset: Any, *, in_memory: bool, num_workers: int, timeout_s: float) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{type(dataset).__name__} has no samples by index: the sample order of a run needs a map-style data set. "
            f"Give it __len__ and __getitem__."
        )
    if num_workers < 0 or timeout_s < 0:
        raise ValueError(f"num_workers={num_workers}, timeout_s={timeout_s:g}: both must be 0 or more.")
    if in_memory and num_workers:
        raise ValueError(
            f"num_workers={num_workers} has no effect: the data set is in memory and indexed by this process. "
            f"Set num_workers=0."
        )
    if timeout_s and not num_workers:
        raise ValueError(
            f"timeout_s={timeout_s:g} has no effect without workers. Set num_workers >= 1, or timeout_s=0."
        )


def _pairs(request: Request) -> list[SampleRequest]:
    return list(zip(request.epochs.tolist(), request.ids.tolist(), strict=True))


def _as_loaded(batch: Any) -> Any:
    return batch


def _pinned(inputs: Inputs) -> Inputs:
    if isinstance(inputs, dict):
        return {key: value.pin_memory() for key, value in inputs.items()}
    return inputs.pin_memory()


def _name(ids: Int64Array) -> str:
    shown = ", ".join(map(str, ids[:8].tolist()))
    return f"samples {shown}{f' and {len(ids) - 8} more' if len(ids) > 8 else ''}"

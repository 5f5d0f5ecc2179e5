"""Load the micro-batches of requested sample ids: in this process, in a thread of it, or through workers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset

from largebatch.data.ahead import Ahead
from largebatch.data.array import ImageNormalisation
from largebatch.data.augmentation import Augmentation
from largebatch.data.device_feed import DeviceFeed, Pinned, Sent, Waiting
from largebatch.data.errors import DataError
from largebatch.data.items import Augment, KeyedItems, Loaded, change_images
from largebatch.data.micro_batch import MicroBatchData, Request
from largebatch.data.stored import stored_form
from largebatch.data.subset import OneByOne
from largebatch.data.worker_pool import WorkerPool, name_samples

# Training and evaluation may read one set, and a set need not stand two threads at once.
_READING = threading.RLock()


@dataclass(frozen=True)
class _Unread:
    """A request at which a set in memory raised an error."""

    request: Request
    error: Exception


class BatchSource:
    """Loads requested micro-batches in order, with only a few in memory at a time.

    Args:
        dataset: in memory (has `fetch`), or map-style.
        augment, num_workers, seed, timeout_s, skips, prefetch, to_gpu, keeps_steps: see `MicroBatchLoader`.
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
        seed: int,
        stream: str,
        timeout_s: float,
        skips: bool = False,
        prefetch: int = 0,
        to_gpu: bool = False,
        keeps_steps: bool = False,
    ) -> None:
        in_memory = hasattr(dataset, "fetch")
        require_samples_by_index(dataset)
        _check_settings(in_memory=in_memory, num_workers=num_workers, timeout_s=timeout_s, prefetch=prefetch)
        if to_gpu and not torch.cuda.is_available():
            raise ValueError("to_gpu=True: there is no CUDA GPU here. Set it to False.")
        if keeps_steps and not to_gpu:
            raise ValueError("keeps_steps=True has no effect without to_gpu=True. Set it to False.")
        self._complete, self._augment_there = None, None
        self._feed: DeviceFeed | None = None
        # Augmentation of somebody else's takes complete images on the host.
        self._mixes_by = augment if isinstance(augment, Augmentation) and augment.mixing else None
        if to_gpu and (augment is None or isinstance(augment, Augmentation)):
            stored, complete = stored_form(dataset)
            # Boxes are cut into images of the stored shape.
            if self._mixes_by is None or complete is None or isinstance(complete, ImageNormalisation):
                dataset, self._complete, self._augment_there, augment = stored, complete, augment, None
        self._dataset, self._augment, self._skips = dataset, augment, skips
        self._to_gpu, self._keeps_steps, self._prefetch = to_gpu, keeps_steps, prefetch
        samples = OneByOne(dataset) if in_memory else dataset
        self._in_memory = in_memory
        self._items = KeyedItems(samples, seed=seed, stream=stream, augment=augment, skips=skips)
        self._pool = WorkerPool(self._items, num_workers, timeout_s=timeout_s) if num_workers else None
        self._ahead: weakref.ref[Ahead[Any]] | None = None  # weak, since its thread refers to this object
        self._num_calls = 0

    def start(self) -> None:
        """Start the workers, if there are any; see `WorkerPool.start`."""
        if self._pool is not None:
            self._pool.start()

    def load(self, requests: Iterator[Request]) -> Iterator[MicroBatchData]:
        """One loaded micro-batch per request, in order.

        All iterators share the workers: a new call ends earlier iterators, which then raise RuntimeError.
        """
        self._num_calls += 1
        self._end_thread()
        self.start()
        return self._while_current(self._batches(requests), self._num_calls)

    def close(self) -> None:
        """End thread and workers. Iterators of earlier calls then raise RuntimeError."""
        self._num_calls += 1
        try:
            self._end_thread()
        finally:
            if self._pool is not None:
                self._pool.close()

    def _end_thread(self) -> None:
        ahead = None if self._ahead is None else self._ahead()
        if ahead is not None and not ahead.close():
            raise DataError("A sample has been read for seconds and does not come: the data cannot be read anew.")

    def _while_current(self, batches: Iterator[MicroBatchData], call: int) -> Iterator[MicroBatchData]:
        while True:
            if call != self._num_calls:
                raise RuntimeError("A later call of `load` ended these micro-batches: use one iterator at a time.")
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _batches(self, requests: Iterator[Request]) -> Iterator[MicroBatchData]:
        if self._to_gpu and self._feed is None:  # only now is the device of the rank known
            device = torch.device("cuda", torch.cuda.current_device())
            self._feed = DeviceFeed(device, complete=self._complete, augment=self._augment_there)
        prepared = map(self._prepare, self._loaded(requests))
        if not self._prefetch:
            yield from map(self._finish, prepared)
            return
        # The device is one of the thread's settings: pinned memory would open a context on the first GPU.
        begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._to_gpu else lambda: None
        ahead = Ahead(prepared, self._prefetch, begin=begin)
        self._ahead = weakref.ref(ahead)
        try:
            yield from map(self._finish, ahead)
        finally:
            ahead.close()

    def _loaded(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Loaded | Exception]]:
        if self._pool is not None:
            return self._pool.load(requests)
        if self._in_memory:
            return ((request, self._fetch(request)) for request in requests)
        return ((request, self._items.load(request.pairs)) for request in requests)

    def _fetch(self, request: Request) -> Loaded | Exception:
        """Of a set in memory: a whole micro-batch at once."""
        try:
            with _READING:
                inputs, targets = self._dataset.fetch(request.ids)
        except Exception as error:
            return error
        if (augment := self._augment) is not None:
            inputs = change_images(inputs, lambda images: augment(images, request.ids, request.epochs))
        return inputs, targets, []

    def _prepare(self, one: tuple[Request, Loaded | Exception]) -> MicroBatchData | Pinned | Sent | _Unread:
        request, loaded = one
        if isinstance(loaded, Exception):
            return _Unread(request, loaded)
        batch, mixed, there = request.filled(*loaded), None, self._augment_there
        draws = None
        # No sample of a placeholder counts: there is none to draw for.
        if there is not None and there.changes_images and not batch.is_placeholder:
            draws = there.draws(*request.loaded(loaded[2]))
        if (augment := self._mixes_by) is not None:
            batch, mixed = augment.mixed(batch, request, loaded[2])
            if there is None:
                batch, mixed = replace(batch, inputs=augment.mix(batch.inputs, mixed)), None
        if self._feed is None:
            return batch
        pinned = self._feed.pin(batch, draws=draws, mixed=mixed)
        return pinned if self._keeps_steps else self._feed.send(pinned)

    def _finish(self, one: MicroBatchData | Pinned | Sent | _Unread) -> MicroBatchData:
        """In the thread that asks for the micro-batch."""
        if isinstance(one, _Unread):
            # Sample by sample, which skips the one at fault or names it. Each draws from the generators of the process.
            with _READING:
                loaded = self._items.load(one.request.pairs)
            if not self._skips:
                error, samples = one.error, name_samples(one.request.ids)
                raise DataError(f"{samples} cannot be loaded: {type(error).__name__}: {error}") from error
            return self._finish(self._prepare((one.request, loaded)))
        if isinstance(one, MicroBatchData):
            return one
        assert self._feed is not None
        return Waiting(one, self._feed) if isinstance(one, Pinned) else self._feed.receive(one)


def require_samples_by_index(dataset: Any) -> None:
    """Raise ValueError unless it has a length and items."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{type(dataset).__name__} has no samples by index: the sample order of a run needs a map-style data set. "
            f"Give it __len__ and __getitem__, or wrap a stream in StreamSamples."
        )


def _check_settings(*, in_memory: bool, num_workers: int, timeout_s: float, prefetch: int) -> None:
    if num_workers < 0 or timeout_s < 0 or prefetch < 0:
        raise ValueError(
            f"num_workers={num_workers}, timeout_s={timeout_s:g}, prefetch={prefetch}: all must be 0 or more."
        )
    if in_memory and num_workers:
        raise ValueError(
            f"num_workers={num_workers} has no effect: the data set is in memory and indexed by this process. "
            f"Set num_workers=0."
        )
    if timeout_s and not num_workers:
        raise ValueError(
            f"timeout_s={timeout_s:g} has no effect without workers. Set num_workers >= 1, or timeout_s=0."
        )
    if prefetch and not in_memory and not num_workers:
        raise ValueError(
            f"prefetch={prefetch}: samples that are loaded one by one in this process draw from its random generators, "
            "so no thread can load them ahead. Set num_workers >= 1, or prefetch=0."
        )

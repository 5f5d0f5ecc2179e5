"""Streams (`IterableDataset`) as samples at positions of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.data._utils.worker as torch_worker
from torch.utils.data import Dataset, IterableDataset

from largebatch.batch.order import SampleOrder, StreamOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data.errors import DataError, StreamError
from largebatch.data.samples import same_items
from largebatch.distributed.generators import preserved_generators, seed_generators

_COMPARED = 8


class StreamSamples(Dataset[Any]):
    """A stream whose sample ids are positions of the run: id p is sample p of pass p // num_samples.

    Each process reads the stream by itself, in order, and passes over what others compute: no position depends on the
    number of ranks or workers. Before each sample the global generators of torch, numpy and random are seeded by
    (seed, pass, position), so a shuffle buffer that draws from them is the same everywhere, too. A stream in a worker
    process does not see that it is in one, and so does not take a worker's share.

    `len` is the number of kept samples: these are looked at, at random, by checks and by evaluations of the training
    side. Training reads any position.

    Args:
        dataset: iterable; `set_epoch(n)` is called before each pass, and `skip(n)` is used to begin inside one, if
            there are such methods.
        num_samples: of a pass. Fewer end the run with an error, and more are not read.
        kept: first samples to keep in memory, at most `num_samples`.
        seed: of the random draws.

    Raises:
        ValueError: if a number is below 1.
        StreamError: if the stream ends before `kept` samples.
        DataError: if it gives other samples when it is read again.
    """

    def __init__(self, dataset: Any, *, num_samples: int, kept: int, seed: int = 0) -> None:
        if num_samples < 1 or kept < 1:
            raise ValueError(f"num_samples={num_samples}, kept={kept}: a stream has at least 1 sample of each.")
        self._dataset, self.num_samples, self._seed = dataset, num_samples, seed
        self._items: Iterator[Any] | None = None
        self._next = self._pass = 0
        self._kept: list[Any] = []
        self.skips_ahead = callable(getattr(dataset, "skip", None))
        started = time.perf_counter()
        with preserved_generators():
            kept_items = [self._read(position) for position in range(min(kept, num_samples))]
            self.seconds_per_sample = (time.perf_counter() - started) / len(kept_items)
            self._check_again(kept_items)
        self._kept, self._items = kept_items, None

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, position: int) -> Any:
        return self._kept[position] if 0 <= position < len(self._kept) else self._read(position)

    def _check_again(self, items: list[Any]) -> None:
        """Read the first samples again, and by `skip`, which is left alone if it does something else."""
        self._items = None
        compared = items[:_COMPARED]
        if not same_items(compared, [self._read(position) for position in range(len(compared))]):
            raise DataError(
                f"the stream gives other samples when it is read again: one of its first {len(compared)} differs. Each "
                "rank reads it by itself, and a resume anew, so it must be a function of its arguments. Seed its "
                "shuffle, or draw from the global generators of torch, numpy or random, which are keyed by position."
            )
        if self.skips_ahead and len(compared) > 1:
            self._items, later = None, len(compared) // 2
            self.skips_ahead = same_items(compared[later:], [self._read(one) for one in range(later, len(compared))])

    def _read(self, position: int) -> Any:
        number, index = divmod(position, self.num_samples)
        with _outside_workers():
            if self._items is None or number != self._pass or index < self._next:
                self._begin(number, index)
            while True:
                assert self._items is not None
                seed_generators(stream_key(self._seed, "stream", number, self._next))
                try:
                    item = next(self._items)
                except StopIteration:
                    self._items = None
                    raise StreamError(
                        f"The stream ended after {self._next:,} samples of pass {number}, and data.stream.samples="
                        f"{self.num_samples} says that a pass has more. Give data.stream.samples={max(self._next, 1)}."
                    ) from None
                except Exception as error:
                    self._items = None  # a generator that raised does not go on
                    raise StreamError(
                        f"Sample {self._next:,} of pass {number} of the stream cannot be read: {type(error).__name__}: "
                        f"{error}. Repair it, or have the stream leave it out."
                    ) from error
                self._next += 1
                if self._next > index:
                    return item

    def _begin(self, number: int, index: int) -> None:
        """Begin pass `number` at sample `index`, or before it."""
        skips = self.skips_ahead and index > 0
        source = self._dataset.skip(index) if skips else self._dataset
        for one in (self._dataset, source):
            if callable(getattr(one, "set_epoch", None)):
                one.set_epoch(number)
        seed_generators(stream_key(self._seed, "stream pass", number))
        self._items, self._pass, self._next = iter(source), number, index if skips else 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_items": None}


@contextmanager
def _outside_workers() -> Iterator[None]:
    """Hide that this is a worker process: streams would take a worker's share of their files."""
    info, torch_worker._worker_info = torch_worker._worker_info, None
    try:
        yield
    finally:
        torch_worker._worker_info = info


def is_stream(dataset: Any) -> bool:
    """Whether a set has samples in one order only."""
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


def stream_of(dataset: Any) -> StreamSamples | None:
    """The stream behind the wrappers of this package, if there is one."""
    while dataset is not None and not isinstance(dataset, StreamSamples):
        dataset = getattr(dataset, "_dataset", getattr(dataset, "clean", None))
    return dataset


def num_samples_of(dataset: Any) -> int:
    """Samples of an epoch."""
    stream = stream_of(dataset)
    return len(dataset) if stream is None else stream.num_samples


def order_of(dataset: Any, seed: int) -> SampleOrder:
    """The order in which a run takes the samples: shuffled by the seed, or as the stream gives them."""
    stream = stream_of(dataset)
    return SampleOrder(len(dataset), seed) if stream is None else StreamOrder(stream.num_samples)

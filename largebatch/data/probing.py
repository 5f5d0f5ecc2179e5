"""Properties of a data set, determined from a few samples spread over it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from largebatch.batch.random_keys import stream_key
from largebatch.data.errors import DataError
from largebatch.data.items import KeyedItems
from largebatch.data.samples import as_sample, form_of, list_keys, text_keys
from largebatch.data.subset import OneByOne, spread
from largebatch.distributed.generators import preserved_generators, seed_generators

SAMPLES_READ = 8
# Four epochs: a change in half of the epochs stays undetected in 8 samples once in 17 million runs.
FOUR_EPOCHS = (0, 1, 2, 3)
_FORMS_SEEN = 16


def changing_samples(dataset: Any, *, seed: int, epochs: Sequence[int] = FOUR_EPOCHS) -> list[int]:
    """Those of `SAMPLES_READ` samples that are not bitwise the same in every read.

    Each read uses the key of an epoch, as in training. A sample that changes between different epochs is augmented by
    the data set. A sample that changes under the same key, `epochs=(0, 0)`, draws from a generator that the run does
    not seed. A sample that cannot be loaded is left out.
    """
    samples = OneByOne(dataset) if hasattr(dataset, "fetch") else dataset
    items = KeyedItems(samples, seed=seed, stream="item", augment=None)
    looked_at = spread(len(dataset), SAMPLES_READ)
    first = {sample: _content(items, epochs[0], sample) for sample in looked_at}
    changing: set[int] = set()
    for epoch in epochs[1:]:
        changing |= {one for one, content in first.items() if content != (_content(items, epoch, one) or content)}
        if len(changing) == len(looked_at):
            break
    return sorted(changing)


def form_of_most(dataset: Any, *, seed: int) -> str | None:
    """The most common form among some samples; None if none of them can be loaded."""
    forms: Counter[str] = Counter()
    for item in _items(dataset, _FORMS_SEEN, seed=seed):
        with contextlib.suppress(DataError):
            forms[form_of(as_sample(item))] += 1
    return forms.most_common(1)[0][0] if forms else None


def notes_of_items(dataset: Any, *, seed: int) -> list[str]:
    """Notes on the conversions of `as_sample`, from the first sample that can be loaded."""
    item = next(_items(dataset, SAMPLES_READ, seed=seed), None)
    notes = []
    if text := text_keys(item):
        notes.append(f"{', '.join(text)} hold text, which no model takes: dropped.")
    if lists := list_keys(item):
        notes.append(f"{', '.join(lists)} hold lists of numbers: read as tensors.")
    return notes


def _items(dataset: Any, count: int, *, seed: int) -> Iterator[Any]:
    """Raw items of the data set; one that cannot be loaded is left out here and reported when it is needed."""
    for sample in spread(len(dataset), count):
        found = []
        with preserved_generators(), contextlib.suppress(Exception):
            seed_generators(stream_key(seed, "probe", sample))
            found.append(dataset[sample])
        yield from found


def _content(items: KeyedItems, epoch: int, sample: int) -> list[bytes] | None:
    try:
        inputs, targets, _ = items.load([(epoch, sample)])
    except DataError:
        return None
    parts = [*inputs.values()] if isinstance(inputs, dict) else [inputs]
    return [part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in (*parts, targets)]

"""Samples of a map-style data set as micro-batches, each sample with its own random key."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from largebatch.batch.random_keys import stream_key
from largebatch.data.array import Int64Array
from largebatch.data.collation import Collated, collated, require_batch
from largebatch.data.errors import DataError, StreamError
from largebatch.data.samples import TARGET_KEYS, BadSampleError, as_sample, form_of
from largebatch.distributed.generators import preserved_generators, seed_generators

Inputs = Tensor | dict[str, Tensor]
Augment = Callable[[Tensor, Int64Array, Int64Array], Tensor]
# One sample to load: (epoch, sample id).
SampleRequest = tuple[int, int]
# A sample that could not be loaded: (index within the request, reason).
Skipped = tuple[int, str]
Loaded = tuple[Inputs, Tensor, list[Skipped]]

_MOST_BROKEN = 1000  # in a row


@dataclass(frozen=True)
class WorkerFailure:
    """An error passed from a worker to the main process as text, since an exception may not survive pickling."""

    message: str
    worker_traceback: str


class KeyedItems(Dataset[Any]):
    """Loads micro-batches of (epoch, id) requests, in the main process or in a worker of a torch DataLoader.

    Every `dataset[id]` runs with the global generators of torch, numpy and random seeded by (seed, stream, epoch,
    id), so that transforms which draw from them give the same sample in any process and any order.

    Args:
        dataset: map-style; items are (input, target), or a dict with a key "labels", "label", "targets" or "target";
            or `Collated`.
        seed: seed of the run.
        stream: name of the random stream.
        augment: applied to the collated images.
        skips: leave out samples that cannot be loaded.
    """

    def __init__(self, dataset: Any, *, seed: int, stream: str, augment: Augment | None, skips: bool = False) -> None:
        self._dataset = dataset
        self._seed = seed
        self._stream = stream
        self._augment = augment
        self._skips = skips
        self._has_own = isinstance(dataset, Collated)

    def load(self, requests: Sequence[SampleRequest]) -> Loaded:
        """Inputs and targets of `requests`, in their order, and the skipped samples.

        If all were skipped, another sample stands in, because the model needs an input.

        Raises DataError, which names the sample at fault.
        """
        samples, kept, skipped, dataset = [], [], [], self._dataset
        with preserved_generators():
            for place, request in enumerate(requests):
                try:
                    samples.append(self._sample(request))
                    kept.append(request)
                except DataError as error:  # noqa: PERF203
                    if isinstance(error, StreamError):
                        raise
                    if not self._skips:
                        repeat = f"`dataset[{request[1]}]` repeats the error"
                        remedy = f"Repair or remove it ({repeat}), or leave it out: data.on_bad_sample=skip."
                        raise DataError(f"{error} {remedy}") from error.__cause__
                    skipped.append((place, str(error)))
            if not kept:
                kept, samples = ([one] for one in self._placeholder(requests[0], skipped[0][1]))
            own = collated(dataset, samples, kept, seed=self._seed, stream=self._stream) if self._has_own else None
        epochs, ids = (np.array(column, dtype=np.int64) for column in zip(*kept, strict=True))
        inputs, targets = split_targets(own if self._has_own else _collate(samples, ids.tolist()), ids.tolist())
        if self._has_own:
            require_batch(dataset, inputs, targets, ids.tolist())
        if self._augment is not None:
            augment = self._augment
            inputs = change_images(inputs, lambda images: augment(images, ids, epochs))
        return inputs, targets, skipped

    def _sample(self, request: SampleRequest) -> Any:
        epoch, sample_id = request
        seed_generators(stream_key(self._seed, self._stream, epoch, sample_id))
        try:
            item = self._dataset[sample_id]
            return item if self._has_own and item is not None else as_sample(item)
        except StreamError:
            raise
        except BadSampleError as error:
            raise DataError(f"Sample {sample_id} {error}") from error
        except Exception as error:
            text = f"{type(error).__name__}: {error}".rstrip(".")
            raise DataError(f"Sample {sample_id} cannot be loaded: {text}.") from error

    def _placeholder(self, request: SampleRequest, reason: str) -> tuple[SampleRequest, Any]:
        """The next sample that can be loaded after an unusable one, with its request."""
        epoch, broken = request
        most = min(len(self._dataset), _MOST_BROKEN) - 1
        for distance in range(1, most + 1):
            candidate = epoch, (broken + distance) % len(self._dataset)
            with contextlib.suppress(DataError):
                return candidate, self._sample(candidate)
        raise DataError(f"{reason} None of the next {most} samples can be used either.")

    def __getitems__(self, requests: Sequence[SampleRequest]) -> Loaded | WorkerFailure:
        """`load` as a DataLoader worker calls it, with an error as a value."""
        try:
            return self.load(requests)
        except Exception as error:
            return WorkerFailure(str(error), traceback.format_exc())

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError("items are loaded a micro-batch at a time")


def split_targets(batch: Any, ids: Sequence[int]) -> tuple[Inputs, Tensor]:
    """Inputs and targets of a collated batch of samples `ids`.

    Raises DataError if items are neither (input, target) nor a dict with exactly one target key.
    """
    if isinstance(batch, dict):
        keys = [key for key in TARGET_KEYS if key in batch]
        if len(keys) == 1 and isinstance(batch[keys[0]], Tensor) and len(batch) > 1:
            inputs = {key: value for key, value in batch.items() if key != keys[0]}
            _require_tensors(inputs, ids)
            return inputs, batch[keys[0]]
        found = f"a dict with the keys {', '.join(map(str, batch))}"
    elif isinstance(batch, (tuple, list)):
        if len(batch) == 2 and isinstance(batch[0], (Tensor, dict)) and isinstance(batch[1], Tensor):
            _require_tensors(batch[0] if isinstance(batch[0], dict) else {}, ids)
            return batch[0], batch[1]
        found = f"({', '.join(type(part).__name__ for part in batch)}) once collated"
    else:
        found = type(batch).__name__
    raise DataError(
        f"Sample {ids[0]} is {found}. An item of a data set is (input, target), or a dict with inputs and exactly one "
        f"of the keys {', '.join(TARGET_KEYS)}; targets are numbers or a Tensor."
    )


def _require_tensors(inputs: dict[str, Any], ids: Sequence[int]) -> None:
    """Raise DataError if an input is not a tensor after collation."""
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            inside = f" of {type(value[0]).__name__}" if isinstance(value, (list, tuple)) and value else ""
            raise DataError(
                f"Sample {ids[0]} has an input {name!r} that is a {type(value).__name__}{inside} once collated: inputs "
                "are numbers or tensors. Remove it from the item, or convert it to a tensor."
            )


def change_images(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """`change` of the inputs, or of the one entry of a dict that is images [n, C, H, W].

    Raises DataError if a dict has no image entry, or several.
    """
    if isinstance(inputs, Tensor):
        return change(inputs)
    images = [key for key, value in inputs.items() if isinstance(value, Tensor) and value.dim() == 4]
    if len(images) != 1:
        raise DataError(
            f"{len(images)} of the inputs {', '.join(inputs)} are images [n, C, H, W]: augmentation needs exactly one. "
            f"Disable it, or augment in the data set."
        )
    return {**inputs, images[0]: change(inputs[images[0]])}


def _collate(samples: Sequence[Any], ids: Sequence[int]) -> Any:
    try:
        return default_collate(list(samples))
    except Exception as error:
        shapes = [form_of(sample) for sample in samples]
        other = next((place for place, shape in enumerate(shapes) if shape != shapes[0]), None)
        what = (
            f"Sample {ids[0]} has {shapes[0]}, sample {ids[other]} has {shapes[other]}"
            if other is not None
            else f"Samples {ids[0]} to {ids[-1]}, each {shapes[0]}, cannot be collated ({error})"
        )
        raise DataError(
            f"{what}. A batch is one tensor: all samples need the same shape and type, "
            "and numbers, arrays, tensors or lists of numbers in them. Samples of unequal length need data.collate_fn, "
            "which pads them."
        ) from error

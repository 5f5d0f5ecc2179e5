"""Forward passes over samples, with micro-batches and random draws as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data.fetching import BatchSource
from largebatch.data.micro_batch import Request
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import forward, micro_batch_key
from largebatch.losses import counted_per_sample

Ids = np.ndarray[Any, np.dtype[np.int64]]
# Columns of the result of a pass.
LOSS, UNITS, CORRECT, TRAINED, COUNTED = range(5)
# Augmented views that training has not seen; the model may have memorised those of the run's epochs.
_FRESH_EPOCH = 2**31


@dataclass(frozen=True)
class GapData:
    """Data of the measurement.

    Attributes:
        train: the training set as training reads it, or None if training reads the same as evaluation.
        plain: the same samples without augmentation.
        validation: the validation set.
        ids: training samples to measure, int64 [n].
        validation_ids: validation samples to measure, int64 [m].
        augment: augmentation of training, keyed by sample and epoch.
        clean: `plain` with its original labels, if training labels were replaced.
        num_workers: processes that load samples of data sets that are not in memory.
    """

    train: Any | None
    plain: Any
    validation: Any
    ids: Ids
    validation_ids: Ids
    augment: Any | None = None
    clean: Any | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class GapSettings:
    """Settings of the measurement.

    Attributes:
        seed: seed of dropout, augmentation and the composition of micro-batches.
        ghost: most samples of a micro-batch in training mode; they share batch norm statistics.
        draws: passes in training mode with different random draws, averaged per sample.
        micro_batch_size: samples per forward pass of an evaluation.
    """

    seed: int
    ghost: int
    draws: int
    micro_batch_size: int


class Passes:
    """Forward passes over samples; ranks share the work by whole micro-batches."""

    def __init__(
        self, module: nn.Module, losses: tuple[Any, Any], data: GapData, runtime: Runtime, settings: GapSettings
    ) -> None:
        self.is_augmented = data.train is not None or data.augment is not None
        self._module = module
        self._losses = losses
        self._data = data
        self._runtime = runtime
        self._settings = settings

    def train(self, draw: int, *, is_augmented: bool) -> Tensor:
        """A pass over the training samples, with the micro-batches and random numbers of one draw."""
        data, settings = self._data, self._settings
        count = len(data.ids)
        order = SampleOrder(count, stream_key(settings.seed, "gap composition")).ids(draw * count, count)
        parts, key = _split(order, settings.ghost), stream_key(settings.seed, "gap", draw)
        if not is_augmented:
            return self._pass(self._source(data.plain), data.ids, parts, key=key)
        source = self._source(data.plain if data.train is None else data.train, augment=data.augment, stream="item")
        return self._pass(source, data.ids, parts, key=key, epoch=_FRESH_EPOCH + draw)

    def evaluate(self, dataset: Any, ids: Ids) -> Tensor:
        """A pass over samples as in `observers.evaluation`, without random draws."""
        parts = _split(np.arange(len(ids)), self._settings.micro_batch_size)
        return self._pass(self._source(dataset), ids, parts, key=stream_key(self._settings.seed, "gap evaluation"))

    def _pass(self, source: BatchSource, ids: Ids, parts: Sequence[Ids], *, key: int, epoch: int = 0) -> Tensor:
        """Sums of every sample, float64 [len(ids), 5]; NaN if the loss does not count correct units."""
        runtime, (trained, measured) = self._runtime, self._losses
        first, last = (len(parts) * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        table = torch.zeros(len(ids), 5, dtype=torch.float64, device=runtime.device)
        own = [torch.empty(0, 5, dtype=torch.float64, device=runtime.device)]
        for batch in source.load(_requests(ids, parts, range(first, last), epoch)):
            inputs, targets = runtime.place(batch.inputs), runtime.place_tensor(batch.targets)
            runtime.seed(micro_batch_key(key, batch.index))
            outputs = forward(self._module, inputs)
            correct = measured.correct_per_sample(outputs, targets)
            columns = [
                measured.loss_per_sample(outputs, targets),
                measured.units_per_sample(targets),
                table.new_full((len(targets),), torch.nan) if correct is None else correct,
                trained.loss_per_sample(outputs, targets),
                counted_per_sample(measured, targets),
            ]
            own.append(torch.stack([column.to(table) for column in columns], dim=1))
        # All at once: each copy of places to the device would make the host wait.
        places = np.concatenate([*parts[first:last], np.empty(0, dtype=np.int64)])
        table[torch.from_numpy(places).to(table.device)] = torch.cat(own)
        runtime.sum_in_place(table)
        return table

    def _source(self, dataset: Any, *, augment: Any = None, stream: str = "evaluation item") -> BatchSource:
        return BatchSource(
            dataset,
            augment=augment,
            num_workers=0 if hasattr(dataset, "fetch") else self._data.num_workers,
            seed=self._settings.seed,
            stream=stream,
            timeout_s=0,
            to_gpu=self._runtime.device.type == "cuda",
        )


def _requests(ids: Ids, parts: Sequence[Ids], own: range, epoch: int) -> Iterator[Request]:
    for index in own:
        epochs = np.full(len(parts[index]), epoch, dtype=np.int64)
        yield Request(ids=ids[parts[index]], epochs=epochs, index=index, samples_seen=0)


def _split(places: Ids, size: int) -> list[Ids]:
    """Pieces of at most `size` that differ by at most one: a small remainder would have unusual statistics."""
    cut = BatchPlan.solve(global_batch_size=len(places), world_size=1, max_micro_batch_size=size)
    return np.split(places, np.cumsum(cut.micro_batch_sizes)[:-1])

"""Samples to measure, as a program of somebody else's has them: a data set, a loader, or batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from largebatch.data.items import split_targets
from largebatch.data.samples import TARGET_KEYS
from largebatch.diagnostics.sharpness.subset import Batch, FixedSubset
from largebatch.distributed.generators import preserved_generators
from largebatch.distributed.own_job import Job, OwnJob
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward
from largebatch.gradient.snapshots import preserving_buffers_and_rng
from largebatch.losses import Loss, ModuleLoss, as_loss, is_coupled
from largebatch.models.modes import evaluating


@dataclass(frozen=True)
class OwnBatches:
    """Batches that each rank has of its own; together they are the samples to measure. Has what `FixedSubset` has.

    Attributes:
        inputs, targets: of this rank's samples, in order.
        sizes: samples of each batch.
        counts: samples of each rank.
    """

    inputs: Inputs
    targets: Tensor
    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, batches: Iterable[Any], job: Job) -> OwnBatches:
        """Collect them, on the device of the job.

        Raises:
            ValueError: if there is no batch, or one is not (inputs, targets) or a dict with one of the keys of targets.
        """
        placed: list[Batch] = []
        with preserved_generators():  # a loader draws from them
            for batch in batches:
                inputs, targets = split_targets(dict(batch) if isinstance(batch, Mapping) else batch, [len(placed)])
                if not targets.dim():
                    raise ValueError("A batch has targets [n, ...]; this is a single sample. Give the data set itself.")
                placed.append((job.place(inputs), job.place_tensor(targets)))
        if not placed:
            raise ValueError("0 batches: nothing to measure. Is the iterator used up?")
        counts = torch.zeros(job.world_size, dtype=torch.float64)
        counts[job.rank] = sum(len(targets) for _, targets in placed)
        together = job.start_sum(counts.to(job.device)).result()
        parts = [inputs for inputs, _ in placed]
        targets = torch.cat([one for _, one in placed])
        return cls(_joined(parts), targets, tuple(len(one) for _, one in placed), tuple(map(round, together)))

    @property
    def num_samples(self) -> int:
        """Of all ranks."""
        return sum(self.counts)

    def batches(self, runtime: Job) -> list[Batch]:
        """See `FixedSubset`."""
        return list(self.stream(runtime))

    def stream(self, runtime: Job) -> Iterator[Batch]:
        """See `FixedSubset`."""
        return self._cut(0, self.sizes)

    def num_groups(self, size: int) -> int:
        """See `FixedSubset`; no group spans ranks."""
        found = sum(count // size for count in self.counts)
        if found < 1:
            raise ValueError(
                f"{list(self.counts)} samples of the ranks make no group of {size}. Use more, or a smaller m."
            )
        return found

    def groups(self, size: int, runtime: Job) -> Iterator[tuple[int, list[Batch]]]:
        """See `FixedSubset`."""
        first, most = sum(count // size for count in self.counts[: runtime.rank]), max(self.sizes)
        for number in range(self.counts[runtime.rank] // size):
            whole, rest = divmod(size, most)
            yield first + number, list(self._cut(number * size, [most] * whole + [rest] * (rest > 0)))

    def _cut(self, start: int, sizes: Sequence[int]) -> Iterator[Batch]:
        for size in sizes:
            rows = slice(start, start + size)
            inputs = {key: part[rows] for key, part in self.inputs.items()} if isinstance(self.inputs, dict) else None
            yield (self.inputs[rows] if inputs is None else inputs), self.targets[rows]  # type: ignore[index]
            start += size


Samples = FixedSubset | OwnBatches


def as_samples(data: Any, job: Job, *, count: int | None, seed: int, micro_batch_size: int) -> Samples:
    """What `data` holds, shared out to the ranks.

    Args:
        data: a map-style data set, whose samples are shared out; a `DataLoader` or batches, which each rank has of its
            own; or a `FixedSubset`.
        job: the ranks.
        count: random samples of a data set, the same for each seed; None: all of it.
        seed: see above.
        micro_batch_size: samples of a data set per forward pass.
    """
    if isinstance(data, FixedSubset):
        return data
    if not holds_batches(data):
        count = len(data) if count is None else min(count, len(data))
        return FixedSubset.random(data, count, seed=seed, micro_batch_size=micro_batch_size)
    if count is not None:
        raise ValueError(f"num_samples={count} is of a data set, and has no effect on batches. Give fewer batches.")
    is_one = isinstance(data, Mapping) or (isinstance(data, (list, tuple)) and len(data) == 2 and _is_input(data[0]))
    return OwnBatches.of([data] if is_one else data, job)


def holds_batches(data: Any) -> bool:
    """Whether `data` is not a data set of single samples."""
    return isinstance(data, (DataLoader, list, tuple, Mapping)) or not hasattr(data, "__getitem__")


def _is_input(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Mapping) and not any(key in value for key in TARGET_KEYS))


def own_job(module: nn.Module, job: Job | None) -> tuple[nn.Module, Job]:
    """The module inside of DDP, and the job of the default process group if none is given."""
    inside = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    return inside, OwnJob.of_module(inside) if job is None else job


def known_loss(loss: Any, module: nn.Module, samples: Samples, job: Job) -> Loss:
    """The loss of each sample, with the divisor of its mean found out by a few samples where torch does not tell it.

    Raises:
        ValueError: see `as_loss`; and for a loss that compares samples.
    """
    found = as_loss(loss)
    if is_coupled(found):
        raise ValueError(f"{type(found).__name__} compares samples: the loss of one depends on which others are there.")
    if isinstance(found, ModuleLoss) and found is not loss and (batch := next(samples.stream(job), None)) is not None:
        with preserving_buffers_and_rng(module), evaluating(module), torch.no_grad():
            found.examine(forward(module, batch[0]), batch[1])
    return found


def _joined(parts: Sequence[Inputs]) -> Inputs:
    first = parts[0]
    if isinstance(first, dict):
        rest = [one for one in parts if isinstance(one, dict)]
        return {key: torch.cat([one[key] for one in rest]) for key in first}
    return torch.cat([one for one in parts if isinstance(one, Tensor)])

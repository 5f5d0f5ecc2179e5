"""The mean loss of a fixed subset as a function of flat weights, summed over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data import MicroBatchData, evaluation_batches
from largebatch.distributed.own_job import Job
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward

Reduce = Callable[[Tensor], None]
Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True)
class FixedSubset:
    """The samples to measure, in order, and their micro-batches.

    The micro-batches depend only on these attributes; each is computed whole by one rank, and a rank may have none.

    Attributes:
        dataset: the data set, without augmentation.
        ids: sample ids, int64 [n].
        micro_batch_size: most samples per forward pass.
        num_workers: processes that load samples of a data set that is not in memory.
    """

    dataset: Any
    ids: np.ndarray[Any, np.dtype[np.int64]]
    micro_batch_size: int
    num_workers: int = 0

    @classmethod
    def random(cls, dataset: Any, count: int, *, seed: int, micro_batch_size: int, num_workers: int = 0) -> FixedSubset:
        """`count` random samples of a data set, the same as evaluation reads for this seed."""
        order = SampleOrder(len(dataset), stream_key(seed, "evaluated subset"))
        return cls(dataset, order.ids(0, count), micro_batch_size, num_workers)

    @property
    def num_samples(self) -> int:
        """Of all ranks."""
        return len(self.ids)

    def batches(self, runtime: Job) -> list[Batch]:
        """This rank's share of the subset, on its device."""
        return list(self.stream(runtime))

    def stream(self, runtime: Job) -> Iterator[Batch]:
        """The same, one batch in memory at a time."""
        parts = self._share(self._cut(self.ids), runtime)
        for batch in self._load(parts, runtime):
            yield _placed(batch, runtime)

    def num_groups(self, size: int) -> int:
        """Number of whole groups of `size` samples; a remainder is ignored. Raises ValueError if there is no group."""
        if not 1 <= size <= len(self.ids):
            raise ValueError(f"{len(self.ids)} samples make no group of {size}. Use more samples, or smaller groups.")
        return len(self.ids) // size

    def groups(self, size: int, runtime: Job) -> Iterator[tuple[int, list[Batch]]]:
        """(number, batches) of this rank's share of the groups of `size` consecutive samples; no group spans ranks."""
        count = self.num_groups(size)
        groups = np.split(self.ids[: count * size], count)
        cuts = [self._cut(ids) for ids in groups]
        mine = self._share(list(enumerate(cuts)), runtime)
        loaded = self._load([part for _, cut in mine for part in cut], runtime)
        for number, cut in mine:
            yield number, [_placed(next(loaded), runtime) for _ in cut]

    def _cut(self, ids: Any) -> list[Any]:
        return np.split(ids, range(self.micro_batch_size, len(ids), self.micro_batch_size))

    def _share(self, parts: list[Any], runtime: Job) -> list[Any]:
        first, last = (len(parts) * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        return parts[first:last]

    def _load(self, parts: Sequence[Any], runtime: Job) -> Iterator[MicroBatchData]:
        ids = np.concatenate([*parts, np.empty(0, dtype=np.int64)])
        num_workers, to_gpu = 0 if hasattr(self.dataset, "fetch") else self.num_workers, runtime.device.type == "cuda"
        sizes = [len(part) for part in parts]
        return evaluation_batches(self.dataset, ids, sizes, num_workers=num_workers, to_gpu=to_gpu)


def _placed(batch: MicroBatchData, runtime: Job) -> Batch:
    return runtime.place(batch.inputs), runtime.place_tensor(batch.targets)


class SubsetLoss:
    """Mean loss per unit (sample or token), its gradient and Hessian-vector products over all trainable weights.

    Every method evaluates all batches once and sums over ranks once. Vectors are flat, in the order of
    `module.parameters()`. An evaluation changes the weights of the module: use it inside `undisturbed`, which restores
    them and puts the module into eval mode.

    Args:
        module: the unwrapped model, since DDP does not support second derivatives.
        loss: see `largebatch.losses.Loss`; it must not compare samples.
        batches: (inputs, targets) of this rank, possibly none.
        reduce: replaces a tensor by its sum over ranks; None: these batches are the whole subset.

    Raises:
        ValueError: if the batches of all ranks have no unit.
    """

    def __init__(self, module: nn.Module, loss: Any, batches: Sequence[Batch], *, reduce: Reduce | None = None) -> None:
        self._module = module
        self._loss = loss
        self._batches = list(batches)
        self._reduce = reduce or (lambda _: None)
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        units = sum(float(loss.units_per_sample(targets).sum()) for _, targets in self._batches)
        total = torch.tensor([units], dtype=torch.float64, device=self._parameters[0].device)
        self._reduce(total)
        self.num_units = float(total)
        if not self.num_units:
            raise ValueError("The samples have 0 units in total: a mean needs at least one. Is every token masked?")

    @property
    def weights(self) -> Tensor:
        """A copy of the current weights, [p]."""
        return _flat(parameter.detach() for parameter in self._parameters)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector in the shapes of the parameters."""
        parts = vector.split([parameter.numel() for parameter in self._parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self._parameters, strict=True)]

    def value(self, weights: Tensor) -> float:
        """Mean loss at `weights`."""
        self._put(weights)
        total = weights.new_zeros(1, dtype=torch.float64)
        with torch.no_grad():
            for batch in self._batches:
                total += self._loss_sum(batch).double()
        self._reduce(total)
        return float(total) / self.num_units

    def value_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Mean loss and its gradient at `weights`."""
        self._put(weights)
        total = weights.new_zeros(len(weights) + 1, dtype=torch.float64)
        for batch in self._batches:
            loss = self._loss_sum(batch)
            total[0] += loss.detach().double()
            total[1:] += _flat(torch.autograd.grad(loss, self._parameters, materialize_grads=True))
        self._reduce(total)
        total /= self.num_units
        return float(total[0]), total[1:].to(weights)

    def hessian_vector_product(self, weights: Tensor, vector: Tensor) -> Tensor:
        """Hv with H at `weights`."""
        self._put(weights)
        parts = self.split(vector)
        total = weights.new_zeros(len(weights), dtype=torch.float64)
        for batch in self._batches:
            loss = self._loss_sum(batch)
            slopes = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)
            terms = [(slope * part).sum() for slope, part in zip(slopes, parts, strict=True) if slope.requires_grad]
            if terms:  # empty if the gradient does not depend on the weights
                along = torch.stack(terms).sum()
                total += _flat(torch.autograd.grad(along, self._parameters, materialize_grads=True))
        self._reduce(total)
        return (total / self.num_units).to(weights)

    def _loss_sum(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            outputs = forward(self._module, inputs)
        loss: Tensor = self._loss.loss_per_sample(outputs, targets).sum()
        return loss

    def _put(self, weights: Tensor) -> None:
        with torch.no_grad():
            for parameter, part in zip(self._parameters, self.split(weights), strict=True):
                parameter.copy_(part)


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])

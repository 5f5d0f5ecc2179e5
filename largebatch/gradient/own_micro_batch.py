"""A micro-batch for a loop of one's own: it knows its weight, when ranks meet, and what its random draws are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from largebatch.data.array import Int64Array
from largebatch.data.device_feed import each
from largebatch.data.items import Inputs
from largebatch.data.micro_batch import MicroBatchData
from largebatch.distributed.generators import preserved_generators, seed_generators
from largebatch.gradient.step import Weight

Joined = Literal["wrapper", "mean", "sum"]
"""Who joins the gradients of ranks: the model's wrapper, which averages; or the loop, by their mean or their sum."""


@dataclass(frozen=True)
class OwnMicroBatch:
    """One micro-batch of `GlobalBatches`.

    Attributes:
        data: as it was loaded.
        weight: factor of its loss sum. Gradients of all micro-batches and ranks then are the gradient of the mean over
            the global batch. 0 where all of its samples were skipped and another one stands in.
        is_last: whether it is the last one of this rank in its global batch.
        random_key: of the draws inside the model.
        device: where inputs and targets go; None: they stay where they were loaded.
        joined: who joins the gradients of ranks, see `GlobalBatches`.
        world_size: number of ranks.
    """

    data: MicroBatchData
    weight: Weight
    is_last: bool
    random_key: int
    device: torch.device | None
    joined: Joined
    world_size: int

    @property
    def inputs(self) -> Inputs:
        """Tensor [n, ...], or a dict of tensors."""
        return each(self.data.inputs, self._placed)

    @property
    def targets(self) -> Tensor:
        """Tensor [n, ...]."""
        return self._placed(self.data.targets)

    @property
    def ids(self) -> Int64Array:
        """Sample ids, int64 [n]."""
        return self.data.ids

    @property
    def epochs(self) -> Int64Array:
        """Epoch of each sample, int64 [n]."""
        return self.data.epochs

    @property
    def index(self) -> int:
        """Its number within the global batch, over all ranks."""
        return self.data.index

    def __len__(self) -> int:
        """Samples that count."""
        return len(self.data.ids)

    @contextlib.contextmanager
    def sync(self, model: nn.Module) -> Iterator[None]:
        """Around forward and backward pass: draws are keyed, and ranks join their gradients in the last pass only.

        Torch's, numpy's and Python's generators are seeded as in `random`. In a model that DDP, FSDP or accelerate has
        wrapped all passes but the last leave the ranks' gradients apart. A plain module just runs.

        Raises:
            ValueError: on several ranks, if the model has no such wrapper and the loop did not say that it joins
                gradients itself, or if it has one and the loop said so.
        """
        knows = hasattr(model, "no_sync") or hasattr(model, "set_requires_gradient_sync")
        if self.world_size > 1 and knows != (self.joined == "wrapper"):
            raise ValueError(_nobody_joins(model, self) if not knows else _both_join(model, self))
        first = next(model.parameters(), None)
        with self.random(None if first is None else first.device), _joining(model, joins=self.is_last):
            yield

    @contextlib.contextmanager
    def random(self, device: torch.device | None = None) -> Iterator[None]:
        """Seed the generators that models draw from by (seed, position, micro-batch); afterwards they are as before.

        Dropout then depends on neither the rank nor what was drawn before. Part of `sync`; for loops that synchronise
        by `is_last` and their own means.

        Args:
            device: of the model, whose generator is seeded, too; None: that of the micro-batch.
        """
        device = device or self.device
        with preserved_generators(device):
            seed_generators(self.random_key, device)
            yield

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor if self.device is None else tensor.to(self.device, non_blocking=True)


@contextlib.contextmanager
def _joining(model: Any, *, joins: bool) -> Iterator[None]:
    """Backward passes inside join the gradients of ranks, or leave them apart; a plain module has none to join."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(joins)
        yield
        return
    apart = None if joins else getattr(model, "no_sync", None)  # DDP, FSDP, whatever compiles them
    with contextlib.nullcontext() if apart is None else apart():
        yield


def _nobody_joins(model: nn.Module, micro: OwnMicroBatch) -> str:
    return (
        f"{type(model).__name__} is not wrapped, so each of {micro.world_size} ranks would keep its own gradient. Wrap "
        "it in DistributedDataParallel or by accelerator.prepare(model). Or add up p.grad over ranks after the last "
        'micro-batch, and say so: GlobalBatches(..., joined="sum"), or "mean" if you average.'
    )


def _both_join(model: nn.Module, micro: OwnMicroBatch) -> str:
    return (
        f'joined="{micro.joined}" says that the loop joins the gradients of {micro.world_size} ranks, but '
        f"{type(model).__name__} averages them in the backward pass. Leave out joined, or pass the module inside."
    )

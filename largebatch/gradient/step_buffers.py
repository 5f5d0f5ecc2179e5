"""Buffers, and weights, that move once per step, however many micro-batches it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class StepBuffers:
    """Lets each micro-batch of a step start from the buffers that the step began with.

    For what a forward pass moves alike whatever its samples (power iterations of a spectral norm, counters of passes,
    the averaged weights of a momentum encoder): after a step it has moved once, as after one pass of the whole global
    batch, on every rank alike and without a collective.

    Args:
        module: the unwrapped model.
        names: of the buffers and parameters.

    >>> class Counts(nn.BatchNorm1d):
    ...     def forward(self, inputs: Tensor) -> Tensor:
    ...         self.num_batches_tracked += 1
    ...         return inputs
    >>> counts = Counts(1)
    >>> for part in StepBuffers(counts, ["num_batches_tracked"]).one_by_one(iter(torch.zeros(3, 2, 1))):
    ...     _ = counts(part)
    >>> int(counts.num_batches_tracked)
    1
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        places = [name.rpartition(".") for name in names]
        self._places = [(module.get_submodule(owner), name) for owner, _, name in places]

    def one_by_one(self, micro_batches: Iterator[T]) -> Iterator[T]:
        """This rank's micro-batches of one step, each taken when the one before is done with."""
        start = [self._buffer(owner, name).detach().clone() for owner, name in self._places]
        for number, micro_batch in enumerate(micro_batches):
            if number > 0:
                with torch.no_grad():
                    for (owner, name), value in zip(self._places, start, strict=True):
                        self._buffer(owner, name).copy_(value)
            yield micro_batch

    def _buffer(self, owner: nn.Module, name: str) -> Tensor:
        buffer = getattr(owner, name)  # a pass may have put another tensor into its place
        assert isinstance(buffer, Tensor)
        return buffer

"""Recompute the running statistics of batch norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.distributed.runtime import Runtime

# Mean and variance, [channels] each.
Pair = tuple[Tensor, Tensor]


def norms_with_statistics(module: nn.Module) -> list[_NormBase]:
    """The norms whose running statistics training updates and evaluation reads; none in evaluation mode."""
    return [
        one for one in module.modules() if isinstance(one, _NormBase) and one.running_mean is not None and one.training
    ]


@contextmanager
def averaging(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Context in which running statistics restart as plain means over micro-batches."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def statistics(norm: _NormBase) -> Pair:
    """A copy of the running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.clone(), norm.running_var.clone()


def over_ranks(norm: _NormBase, runtime: Runtime, kept: Pair) -> Pair:
    """Means over the micro-batches of all ranks; `kept` for a norm that no rank called."""
    assert norm.num_batches_tracked is not None
    own = float(norm.num_batches_tracked)
    mean, variance = statistics(norm)
    row = torch.cat([mean.double() * own, variance.double() * own, mean.new_full((1,), own, dtype=torch.float64)])
    runtime.sum_in_place(row)
    count = row[-1]
    totals = zip(row[:-1].chunk(2), kept, strict=True)
    total_mean, total_variance = (torch.where(count > 0, (one / count).to(old), old) for one, old in totals)
    return total_mean, total_variance


def put(norms: Sequence[_NormBase], pairs: Sequence[Pair]) -> None:
    """Set the running mean and variance of every norm."""
    for norm, (mean, variance) in zip(norms, pairs, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

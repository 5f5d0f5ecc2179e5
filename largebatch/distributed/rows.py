"""Tensors of which each rank holds some rows: all of them on every rank, and sums of which each rank takes its own.

A rank receives each row once, and sends as much: half of what an all-reduce of the whole tensor would move.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from largebatch.distributed.runtime import Runtime

# torch 2.13 renames both; 2.11 has only the older names.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def gather_rows(runtime: Runtime, own: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, in the order of ranks: own [counts[rank], ...] -> [sum(counts), ...]."""
    if runtime.world_size == 1:
        return own
    most = max(counts)
    padded = own if len(own) == most else torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
    whole = own.new_empty((len(counts) * most, *own.shape[1:]))
    _all_gather(whole, padded.contiguous())
    if min(counts) == most:
        return whole
    return torch.cat([part[:count] for part, count in zip(whole.split(most), counts, strict=True)])


def sum_own_rows(runtime: Runtime, whole: Tensor, counts: Sequence[int]) -> Tensor:
    """The sum over ranks of this rank's rows: whole [sum(counts), ...] -> [counts[rank], ...]."""
    if runtime.world_size == 1:
        return whole
    most = max(counts)
    if min(counts) < most:
        none = whole.new_zeros((most, *whole.shape[1:]))
        parts = zip(whole.split(list(counts)), counts, strict=True)
        whole = torch.cat([piece for part, count in parts for piece in (part, none[count:])])
    own = whole.new_empty((most, *whole.shape[1:]))
    _reduce_scatter(own, whole.contiguous())
    return own[: counts[runtime.rank]]

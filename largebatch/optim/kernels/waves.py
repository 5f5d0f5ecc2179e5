"""The order in which compiled kernels visit the blocks of many tensors: in waves that each fit in the cache."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Blocks and waves of tensors, and the order of the visits: see kernels.c."""

    blocks: Any
    visits: Any
    second_visits: Any
    num_left: Any
    starts: Any  # the first block of every tensor, then the number of blocks
    waves: list[tuple[int, int]]  # first tensor, and the one after the last
    num_shares: int  # threads that have something to do


@functools.lru_cache(maxsize=64)
def plan(numels: tuple[int, ...], block_numel: int, wave_numel: int) -> Plan:
    """The plan for tensors of these sizes: no wave of several tensors is larger than `wave_numel`.

    >>> plan((3, 1, 4), 2, 4).blocks.tolist()
    [[0, 0, 2, 0], [0, 2, 1, 0], [1, 0, 1, 0], [2, 0, 2, 1], [2, 2, 2, 1]]
    >>> plan((3, 1, 4), 2, 4).visits.tolist()
    [0, 2, 4, 5, 3, 1, 6, 8, 9, 7]
    """
    waves: list[tuple[int, int]] = []
    first = taken = 0
    for tensor, numel in enumerate(numels):
        if taken and taken + numel > wave_numel:
            waves.append((first, tensor))
            first, taken = tensor, 0
        taken += numel
    waves.append((first, len(numels)))
    blocks: list[tuple[int, int, int, int]] = []
    visits, starts, num_left = [], [], []
    for wave, (first, end) in enumerate(waves):
        begin = len(blocks)
        for tensor in range(first, end):
            starts.append(len(blocks))
            numel = numels[tensor]
            blocks += [(tensor, at, min(block_numel, numel - at), wave) for at in range(0, numel, block_numel)]
        numbers = range(begin, len(blocks))
        visits += [2 * number for number in numbers] + [2 * number + 1 for number in reversed(numbers)]
        num_left.append(len(numbers))
    order = np.array(visits, dtype=np.int64)
    return Plan(
        blocks=np.array(blocks, dtype=np.int64),
        visits=order,
        second_visits=order[order % 2 == 1],
        num_left=np.array(num_left, dtype=np.int64),
        starts=np.array([*starts, len(blocks)]),
        waves=waves,
        num_shares=min(len(blocks), math.ceil(sum(numels) / block_numel)),
    )

"""Where the programs of a Triton kernel find their work: the tables that `triton_kernels` describes, made once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.flat import Row

NUM_COLUMNS = 5
"""Of the table of tensors: number of elements, addresses of the parameter, its gradient and up to two of state."""


@dataclass(frozen=True)
class Tables:
    """What all kernels of a step take, on the device of its tensors."""

    table: Tensor
    chunks: Tensor
    firsts: Tensor

    @property
    def num_tensors(self) -> int:
        """Tensors of the step."""
        return len(self.table)

    @property
    def num_chunks(self) -> int:
        """Chunks of all tensors: the programs of a kernel."""
        return len(self.chunks)


def tables(rows: Sequence[Row], width: int, chunk_numel: int) -> Tables:
    """Tables of rows whose first `width` tensors are a parameter, its gradient and its state, none of them empty.

    They depend on addresses and sizes alone, so that a step finds those of the last one, unless a gradient has moved.
    Then only the table of addresses is made and copied, and nothing waits for the device.
    """
    device = rows[0][0].device
    # A table is used on the stream that it was copied on, and its memory is given back there.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    numels = tuple([row[0].numel() for row in rows])
    addresses = tuple([tensor.data_ptr() for row in rows for tensor in row[:width]])
    chunks, firsts = _chunks(numels, chunk_numel, device, stream)
    return Tables(_table(numels, addresses, device, stream), chunks, firsts)


@functools.lru_cache(maxsize=64)
def _chunks(numels: Sequence[int], chunk_numel: int, device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    counts = -(-np.array(numels) // chunk_numel)
    chunks = np.repeat(np.arange(len(numels), dtype=np.int32), counts)
    firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return to_device(chunks, device), to_device(firsts, device)


@functools.lru_cache(maxsize=64)
def _table(numels: Sequence[int], addresses: Sequence[int], device: torch.device, stream: int) -> Tensor:
    table = np.zeros((len(numels), NUM_COLUMNS), dtype=np.int64)
    table[:, 0] = numels
    table[:, 1 : 1 + len(addresses) // len(numels)] = np.array(addresses, dtype=np.uint64).reshape(len(numels), -1)
    return to_device(table, device)


def to_device(values: Any, device: torch.device) -> Tensor:
    """A numpy array on the device; nothing waits for the copy, whose source torch keeps until it is done."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

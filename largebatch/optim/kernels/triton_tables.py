"""Selects the tensors of a launch of a Triton kernel, and builds the tables that `triton_kernels` describes.

On a GPU a step may take less time than Python needs to look at a few hundred tensors one by one. So they are looked at
in full once; later steps only see whether an address, a size, an order in memory or a type has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.kernels.flat import in_one_order, refusal
from largebatch.optim.state import wide_dtype

CHUNK_NUMEL = 2048
"""Elements of a program: 8 for each of its threads, two reads of 16 bytes each. With 16 the registers have room for one
program per processor instead of two to four."""

NUM_COLUMNS = 5
"""Columns of a table of tensors: number of elements; addresses of the parameter, its gradient and up to 2 states."""

MAX_KNOWN = 64
"""Sets of tensors whose tables are kept: groups, times the places where their gradients come to lie."""

DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Dtypes of parameters and gradients, by their names in Triton; state is float32 or float64."""

_TAKES = "float32, float64, bfloat16 and float16 tensors"
_dtype = attrgetter("dtype")


@dataclass(frozen=True)
class Work:
    """Tensors of one device and one set of dtypes, none of them empty; the tables lie on the device.

    Attributes:
        members: their numbers in the columns that they were taken from.
        dtypes: of parameters, gradients and state.
        device: where all of them are.
        tables: `table`, `chunks` and `firsts`.
        chunk_numel: elements of a chunk.
    """

    members: list[int]
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    device: torch.device
    tables: tuple[Tensor, Tensor, Tensor]
    chunk_numel: int

    @property
    def num_tensors(self) -> int:
        """Tensors of the launch."""
        return len(self.members)

    @property
    def num_chunks(self) -> int:
        """Chunks of all tensors: the programs of a kernel."""
        return len(self.tables[1])


_known: dict[tuple[int, ...], tuple[list[Any], list[Work]]] = {}


def works(*columns: Sequence[Tensor]) -> list[Work]:
    """The launches for parameters, gradients and state, given as parallel lists.

    Tables depend on addresses, sizes, orders and types alone, which are compared, so that a step finds those of an
    earlier one, unless a tensor has moved. What is made anew is copied without a wait for the device.

    Raises:
        ValueError: if a parameter is not a plain tensor of a dtype that the kernels know, or what belongs to it has
            another dtype than it should, another shape, or another order in memory.
    """
    if not set(map(type, columns[0])) <= {Tensor, torch.nn.Parameter}:
        _refuse_others(columns)
    addresses = tuple([address for column in columns for address in map(Tensor.data_ptr, column)])
    layout: list[Any] = [_streams(columns[0])]
    for column in columns:
        layout += [list(map(reading, column)) for reading in (Tensor.numel, Tensor.stride, _dtype, type)]
    known = _known.get(addresses)
    if known is not None and known[0] == layout:
        return known[1]
    _refuse_others(columns)
    made = _made(columns)
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    _known[addresses] = (layout, made)
    return made


def _streams(params: Sequence[Tensor]) -> list[int]:
    """A table is used on the stream that it was copied on, and its memory is given back there."""
    devices = sorted(set(map(Tensor.get_device, params)))
    return [torch.cuda.current_stream(device).cuda_stream for device in devices if device >= 0]


def _refuse_others(columns: Sequence[Sequence[Tensor]]) -> None:
    for row in zip(*columns, strict=True):
        if not _is_plain(row):
            raise ValueError(refusal("compile=True", row, "Set compile=False", takes=_TAKES))


def _is_plain(row: Sequence[Tensor]) -> bool:
    param, grad, *state = row
    wide = wide_dtype(param)
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and param.dtype in DTYPES
        and all(type(other) is Tensor and other.shape == param.shape for other in row[1:])
        and all(other.dtype == wide and other.device == param.device for other in state)
        and grad.dtype in (param.dtype, wide)
        and in_one_order(row) is not None
    )


def _made(columns: Sequence[Sequence[Tensor]]) -> list[Work]:
    kinds: dict[tuple[torch.device, torch.dtype, torch.dtype, torch.dtype], list[int]] = {}
    for number, (param, grad, state) in enumerate(zip(*columns[:3], strict=True)):
        if param.numel():
            kinds.setdefault((param.device, param.dtype, grad.dtype, state.dtype), []).append(number)
    return [
        Work(members, kind[1:], kind[0], _tables([[column[at] for column in columns] for at in members]), CHUNK_NUMEL)
        for kind, members in kinds.items()
    ]


def _tables(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    device = rows[0][0].device
    numels = np.array([row[0].numel() for row in rows])
    table = np.zeros((len(rows), NUM_COLUMNS), dtype=np.int64)
    table[:, 0] = numels
    table[:, 1 : 1 + len(rows[0])] = np.array([[tensor.data_ptr() for tensor in row] for row in rows], dtype=np.uint64)
    counts = -(-numels // CHUNK_NUMEL)
    chunks = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return to_device(table, device), to_device(chunks, device), to_device(firsts, device)


def to_device(values: Any, device: torch.device) -> Tensor:
    """A numpy array on the device; nothing waits for the copy, whose source torch keeps until it is done."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

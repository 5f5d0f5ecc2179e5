"""A job of any number of ranks of which only one is there: its collectives end at once and change nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

_BACKEND = "imagined"


def _done(tensors: Any) -> Any:
    from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined]

    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(tensors)
    return _create_work_from_future(future)


class _ImaginedGroup(dist.ProcessGroup):
    """The other ranks send what this one sends, and sums leave a tensor as it is."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)  # type: ignore[call-arg]

    def allreduce(self, tensors: Any, *_: Any) -> Any:
        return _done(tensors)

    def broadcast(self, tensors: Any, *_: Any) -> Any:
        return _done(tensors)

    def allgather(self, outputs: Any, inputs: Any, *_: Any) -> Any:
        for of_ranks, own in zip(outputs, inputs, strict=True):
            for output in of_ranks:
                output.copy_(own)
        return _done(outputs)

    def _allgather_base(self, output: Any, own: Any, *_: Any) -> Any:
        output.view(self.size(), -1).copy_(own.view(1, -1))
        return _done([output])

    def _reduce_scatter_base(self, output: Any, own: Any, *_: Any) -> Any:
        output.view(1, -1).copy_(own.view(self.size(), -1)[:1])
        return _done([output])

    # The names that torch 2.13 calls; 2.11 calls those above.
    all_gather_single: Any = _allgather_base
    reduce_scatter_single: Any = _reduce_scatter_base

    def send(self, tensors: Any, *_: Any) -> Any:
        return _done(tensors)

    def recv(self, tensors: Any, *_: Any) -> Any:
        return _done(tensors)

    def barrier(self, *_: Any, **__: Any) -> Any:
        return _done([])

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return _BACKEND


@contextlib.contextmanager
def imagined_ranks(world_size: int) -> Iterator[None]:
    """Inside, this process is rank 0 of `world_size` ranks, for torch and by its environment.

    One rank is a process without a launcher.
    """
    assert not dist.is_initialized(), "this process is a rank of a real job"
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    kept = {name: text for name, text in os.environ.items() if name not in ranks}
    with patch.dict(os.environ, kept | (ranks if world_size > 1 else {}), clear=True):
        if world_size == 1:
            yield
            return
        if _BACKEND.upper() not in dist.Backend._plugins:
            dist.Backend.register_backend(
                _BACKEND, lambda _store, rank, size, _timeout: _ImaginedGroup(rank, size), devices=["cpu"]
            )
        dist.init_process_group(_BACKEND, rank=0, world_size=world_size, store=dist.HashStore())
        try:
            yield
        finally:
            dist.destroy_process_group()

"""Tensors from one rank to another, within the communicator of the job."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def send(values: Tensor, to: int) -> None:
    """Send a tensor to rank `to`, which must call `receive` with a tensor of the same shape and type."""
    _transfer(dist.isend, values, to)


def receive(values: Tensor, source: int) -> None:
    """Receive into `values` the tensor that rank `source` sends."""
    _transfer(dist.irecv, values, source)


def _transfer(operation: Any, values: Tensor, peer: int) -> None:
    # A batch of one: outside of a batch NCCL makes a communicator, with memory of its own, for each pair of ranks.
    for work in dist.batch_isend_irecv([dist.P2POp(operation, values, peer)]):
        work.wait()

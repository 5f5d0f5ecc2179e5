"""Tensors that one rank has and every rank needs, sent in pieces of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor

from largebatch.distributed.runtime import Runtime

PIECE_BYTES = 2**26  # large enough for the bandwidth of any network, and 1/1,000 of a GPU's memory


def of_rank0(runtime: Runtime, tensor: Tensor) -> Tensor:
    """The values of rank 0's tensor on every rank. Every rank calls it.

    Args:
        runtime: the job.
        tensor: of the same shape and dtype everywhere; only rank 0's has values, others may lie on the device "meta".

    Returns:
        On rank 0 the tensor itself. Elsewhere a new one on the device of the rank; nothing passes through the memory
        of the host where that is a GPU.
    """
    if runtime.world_size == 1:
        return tensor
    whole = tensor if runtime.is_main else torch.empty(tensor.shape, dtype=tensor.dtype, device=runtime.device)
    for piece in _bytes(whole).split(PIECE_BYTES):
        # The others receive into the piece itself. Not through `to`, which copies from "cpu" to "cpu:1".
        runtime.broadcast_tensor(piece.to(runtime.device) if runtime.is_main else piece)
    return whole


def _bytes(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1).view(torch.uint8)

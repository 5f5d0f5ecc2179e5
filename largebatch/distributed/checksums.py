"""Checksums of tensors: SHA-256 for records, a cheap one to compare ranks while training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# Words per chunk: 2 MiB fit into a CPU's cache and are enough work for one GPU kernel.
_CHUNK = 2**18


def tensors_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes of tensors, in the order of their names.

    Tensors on a GPU are copied to the host one after another.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = _real(tensor).cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_checksums(module: nn.Module) -> Tensor:
    """One 64-bit checksum per parameter, int64 [number of parameters] in the order of `named_parameters`.

    It is sum_i (2 i + 1) x_i modulo 2^64 over the bytes as little-endian 64-bit words x_i, padded with zeros, and
    summed with odd factors over chunks. Odd numbers are invertible modulo 2^64, so any change within one word always
    changes the sum.

    It runs on the device of the parameters, without synchronisation.
    """
    return checksums(list(module.parameters()))


def checksums(tensors: Sequence[Tensor]) -> Tensor:
    """As `parameter_checksums`, for any tensors on one device. Strides do not matter; an empty tensor has 0."""
    return torch.stack([_checksum(tensor) for tensor in tensors])


def combine_checksums(checksums: Tensor) -> Tensor:
    """One checksum over many, int64 scalar; a change in any one of them always changes it."""
    return (checksums * _odd_numbers(len(checksums), checksums.device)).sum()


def _checksum(tensor: Tensor) -> Tensor:
    words = _words(tensor)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    weights = _odd_numbers(min(len(words), _CHUNK), tensor.device)
    for number, chunk in enumerate(words.split(_CHUNK)):
        total += (2 * number + 1) * (chunk * weights[: len(chunk)]).sum()
    return total


def _words(tensor: Tensor) -> Tensor:
    data = _real(tensor).contiguous().reshape(-1).view(torch.uint8)
    if len(data) % 8 or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(-len(data) % 8)])
    return data.view(torch.int64)


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, 2 * count + 1, 2, dtype=torch.int64, device=device)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor

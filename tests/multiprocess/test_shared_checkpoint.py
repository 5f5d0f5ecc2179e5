"""A checkpoint is read by one rank and taken by all: no other one opens a file, holds a copy, or decides for itself."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import largebatch.distributed.of_rank0 as sending
from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import (
    CheckpointError,
    load_weights,
    loading,
    manifest,
    newest_valid,
    pack_optimizer,
    require_model_fit,
    save_checkpoint,
    unpack_optimizer,
)
from largebatch.records.run_folder import RunFolder
from largebatch.run.resume import find_checkpoint

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.bool)
PIECE = 64


class Plain(nn.Module):
    """A tied weight, running statistics, a buffer that no file holds, a weight with other strides, an empty one."""

    def __init__(self, seed: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(11, width), nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)


class Halved(Plain):
    """Holds half of what it is given, and gives twice what it holds."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._register_state_dict_hook(lambda _, state, prefix, __: state.update(scale=state["norm.weight"] * 2))
        self.register_buffer("scale", torch.zeros(8), persistent=False)

    def _load_from_state_dict(self, state: dict[str, Any], *rest: Any) -> None:
        self.norm.weight.data.copy_(state.pop("scale") / 2)
        super()._load_from_state_dict(state, *rest)


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    optimizer.step()
    return optimizer


def names_of(model: nn.Module) -> dict[Tensor, str]:
    return {one: name for name, one in model.named_parameters()}


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, one in tensors.items()}


def taken(folder: Path, make: Any, pieces: list[int]) -> dict[str, bytes]:
    """Weights and state of this rank after all have taken the newest checkpoint; `pieces` gets the bytes of each."""
    read: list[Any] = []
    with Runtime.open() as runtime, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sending, "PIECE_BYTES", PIECE)
        broadcast = Runtime.broadcast_tensor
        patched.setattr(
            Runtime, "broadcast_tensor", lambda self, one: (pieces.append(one.nbytes), broadcast(self, one))[1]
        )
        if not runtime.is_main:
            for module in (manifest, loading):
                patched.setattr(module, "read_regular", lambda *paths, **_: read.append(paths))
        model = make(seed=1 + runtime.rank)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        fits = partial(require_model_fit, module=model)
        checkpoint, _ = find_checkpoint("auto", RunFolder(folder), runtime, fits=fits)
        assert checkpoint is not None
        assert read == []
        assert runtime.is_main or all(one.is_meta for group in checkpoint.tensors.values() for one in group.values())
        assert load_weights(runtime, model, checkpoint.tensors["model"]) == ([], [])
        state = checkpoint.tensors["optimizer"], checkpoint.values["optimizer"]
        unpack_optimizer(optimizer, *state, names_of(model), fetch=partial(of_rank0, runtime))
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
        return bits(model.state_dict()) | bits(pack_optimizer(optimizer, names_of(model))[0])


def taken_with_pieces(folder: Path, make: Any) -> tuple[dict[str, bytes], list[int]]:
    pieces: list[int] = []
    return taken(folder, make, pieces), pieces


@pytest.mark.parametrize("make", [Plain, Halved])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_takes_what_rank_0_has_read_bit_for_bit(ranks, tmp_path: Path, make: Any, world_size: int):
    model = make(seed=0)
    optimizer, values = pack_optimizer(stepped(model), names_of(model))
    tensors = {"model": dict(model.state_dict()), "optimizer": optimizer}
    save_checkpoint(tmp_path / "checkpoints", step=1, tensors=tensors, values={"optimizer": values}, keep=1)
    expected = bits(tensors["model"]) | bits(optimizer)
    for found, pieces in ranks(world_size).run(taken_with_pieces, tmp_path, make):
        assert found == expected
        assert max(pieces, default=0) == (0 if world_size == 1 else PIECE)


def sent(dtype: torch.dtype) -> tuple[bytes, bool]:
    """A tensor of rank 0 with other strides, as this rank has it."""
    with Runtime.open() as runtime:
        values = torch.arange(12.0).reshape(3, 4).t().to(dtype) if runtime.is_main else torch.empty(4, 3, dtype=dtype)
        found = of_rank0(runtime, values if runtime.is_main else values.to("meta"))
        return bits({"": found})[""], of_rank0(runtime, torch.tensor(runtime.rank, dtype=torch.float64)).item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_any_dtype_is_sent_as_it_is(ranks, dtype: torch.dtype):
    expected = bits({"": torch.arange(12.0).reshape(3, 4).t().to(dtype)})[""]
    assert ranks(2).run(sent, dtype) == [(expected, True)] * 2


def refused(folder: Path, odd: bool) -> str:
    with Runtime.open() as runtime:
        fits = partial(require_model_fit, module=Plain(0, width=4 if odd and runtime.rank == 1 else 8))
        with pytest.raises(CheckpointError) as error:
            find_checkpoint("auto", RunFolder(folder), runtime, fits=fits)
        return str(error.value)


@pytest.mark.parametrize("odd", [False, True], ids=["damaged", "another model on one rank"])
def test_what_stops_one_rank_stops_all_with_its_reason(ranks, tmp_path: Path, odd: bool):
    """The damage lies where only reading all bytes finds it; only rank 0 reads, and the others know its reason."""
    model = Plain(0)
    path = save_checkpoint(
        tmp_path / "checkpoints", step=1, tensors={"model": dict(model.state_dict())}, values={}, keep=1
    )
    if not odd:
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    first, *others = ranks(3).run(refused, tmp_path, odd)
    assert others == [first] * 2
    assert ("rank 1" in first and "belongs to another model" in first) if odd else "does not have the SHA-256" in first
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000001"]
    assert newest_valid(tmp_path / "checkpoints")[0] is None or odd

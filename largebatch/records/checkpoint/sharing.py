"""Checkpoints that rank 0 reads and every rank takes: read and verified once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint.loading import Checkpoint
from largebatch.records.checkpoint.manifest import CheckpointError


def chosen_by_rank0(
    runtime: Runtime, choose: Callable[[], tuple[Checkpoint | None, list[str]]]
) -> tuple[Checkpoint | None, list[str]]:
    """What `choose` returns on rank 0, the only one to call it: a checkpoint and notes. Every rank calls this.

    Other ranks get the checkpoint with its tensors on the device "meta"; `of_rank0` fetches their values.

    Raises:
        CheckpointError: on every rank, with rank 0's text, if `choose` fails there.
    """
    chosen: Checkpoint | None = None
    notes: list[str] = []
    failure: str | None = None
    cause: Exception | None = None
    # Reading takes as long as the disk does: a step's limit would take rank 0 for lost.
    with runtime.membership.patience() if runtime.world_size > 1 else nullcontext():
        if runtime.is_main:
            try:
                chosen, notes = choose()
            except Exception as error:  # whatever it is: the others wait
                failure = str(error) if isinstance(error, CheckpointError) else f"Rank 0 failed: {error!r}"
                cause = None if isinstance(error, CheckpointError) else error
        outline, notes, failure = runtime.broadcast((None if chosen is None else _outlined(chosen), notes, failure))
    if failure is not None:
        raise CheckpointError(failure) from cause
    return (chosen if runtime.is_main else outline), notes


def load_weights(runtime: Runtime, module: nn.Module, saved: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """As `load_state_dict(saved, strict=False)` with the values of rank 0. Every rank calls it.

    Tensors arrive one at a time, so no rank but 0 holds a second copy of the weights. A model with hooks or a
    `load_state_dict` of its own needs all of them at once: then they wait in the memory of the host.

    Returns:
        The names that are missing, and those that are left over.
    """
    own = module.state_dict()
    if runtime.world_size > 1 and own.keys() == saved.keys() and _is_plain(module, own):
        with torch.no_grad():
            for name in sorted(own):
                own[name].copy_(of_rank0(runtime, saved[name]))
        return [], []
    whole = {name: of_rank0(runtime, saved[name]).cpu() for name in sorted(saved)}
    missing, unexpected = module.load_state_dict({name: whole[name] for name in saved}, strict=False)
    return missing, unexpected


def _outlined(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {
        group: {name: torch.empty_like(one, device="meta") for name, one in named.items()}
        for group, named in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def _is_plain(module: nn.Module, own: Mapping[str, Tensor]) -> bool:
    """Whether loading only copies into parameters and buffers: no code of the model's own takes part."""
    members = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    if any(name not in members or not value.is_set_to(members[name].detach()) for name, value in own.items()):
        return False
    hooks = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
    methods = ("load_state_dict", "_load_from_state_dict")
    return not any(
        any(getattr(one, hook) for hook in hooks)
        or any(not getattr(type(one), method).__module__.startswith("torch.") for method in methods)
        for one in module.modules()
    )

"""The ranks of a program that starts and joins its job by itself: torchrun, accelerate, or one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.distributed.pending_sum import PendingSum, start_sum
from largebatch.distributed.placement import Inputs, placed, placed_tensor
from largebatch.distributed.runtime import Runtime


@dataclass(frozen=True)
class OwnJob:
    """One rank's view of a job that somebody else has opened; for our own see `Runtime`.

    Attributes:
        rank, world_size: of this process.
        device: where numbers lie that ranks sum.
        precision: fp64 where samples are placed in double precision.
    """

    rank: int
    world_size: int
    device: torch.device
    precision: str = "fp32"

    @classmethod
    def of_process(cls, rank: int | None = None, world_size: int | None = None) -> OwnJob:
        """The job of torch.distributed's default process group, or of `rank` and `world_size` where there is none yet.

        Raises:
            ValueError: if a launcher has started several ranks and nothing says which one this is, if one of the two
                numbers is missing, or if they are not those of the process group.
        """
        joined = dist.is_available() and dist.is_initialized()
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank={rank}, world_size={world_size}: give both, or neither to ask torch.distributed.")
        if rank is None or world_size is None:
            rank, world_size = rank_and_world_size(os.environ)
        elif not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: ranks count from 0 to world_size - 1.")
        elif joined and (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
            raise ValueError(
                f"rank={rank} of {world_size} is not rank {dist.get_rank()} of {dist.get_world_size()}, as the process "
                "group of torch.distributed says. Leave both out."
            )
        on_gpu = joined and dist.get_backend() == "nccl"  # which sums nothing on the host
        return cls(rank, world_size, torch.device("cuda", torch.cuda.current_device()) if on_gpu else _CPU)

    @classmethod
    def of_module(cls, module: nn.Module) -> OwnJob:
        """The job of the default process group, with samples on the device of a module, in double precision as it is.

        Raises:
            ValueError: as `of_process`.
        """
        own = next(module.parameters())
        return replace(cls.of_process(), device=own.device, precision="fp64" if own.dtype == torch.float64 else "fp32")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def place(self, value: Inputs) -> Inputs:
        """As `Runtime.place`."""
        return placed(value, self.place_tensor)

    def place_tensor(self, value: Tensor) -> Tensor:
        """As `Runtime.place_tensor`."""
        return placed_tensor(value, self.device, self.precision)

    def sum_in_place(self, values: Tensor) -> None:
        """Replace a tensor by its element-wise sum over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)

    def broadcast_tensor(self, values: Tensor) -> None:
        """Replace a tensor by that of rank 0, on every rank."""
        dist.broadcast(values, src=0)

    def start_sum(self, values: Tensor) -> PendingSum:
        """See `pending_sum.start_sum`."""
        return start_sum(values, self.world_size)

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in their order; the own one alone where there is no process group to ask."""
        if self.world_size == 1 or not dist.is_initialized():
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


_CPU = torch.device("cpu")
Job = Runtime | OwnJob


def rank_and_world_size(environ: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank and their number, as torch.distributed says; (0, 1) without a process group.

    Raises:
        ValueError: if the launcher of `environ` has started several ranks that have not joined a process group: each
            would take itself for the only one.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if (started := environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"The launcher has started {started} ranks (WORLD_SIZE), but this one has joined no process group, so it "
            "would train on the samples of all. Call torch.distributed.init_process_group() or make the Accelerator "
            "before, or pass rank= and world_size=."
        )
    return 0, 1

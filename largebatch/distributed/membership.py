"""A rank's membership of its job: time limits, signs of life, and the way in and out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from largebatch.distributed.heartbeat import Heartbeat
from largebatch.distributed.process_group import (
    abandon_process_group,
    end_abandoned_group,
    leave_process_group,
    open_process_group,
)
from largebatch.distributed.rendezvous import LauncherError


@dataclass(frozen=True)
class TimeLimits:
    """How long ranks wait for each other, in seconds.

    Attributes:
        collective_s: after which an incomplete collective fails.
        start_s: the same until the first steps are done, in which ranks compile; at least `collective_s`.
        rendezvous_s: until all ranks of the job must have joined.
        heartbeat_s: between two signs of life of a rank.
        silence_s: without a sign of life, after which a rank is lost; counts once the first steps are done.
    """

    collective_s: float = 600
    start_s: float = 1800
    rendezvous_s: float = 300
    heartbeat_s: float = 5
    silence_s: float = 120

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_s", max(self.start_s, self.collective_s))


class Membership:
    """What a rank has of its process group: signs of life, time limits, and the way out.

    Args:
        owns_group: whether it was opened here; a group that was there before stays.
        heartbeat: of this rank; not started where there is nobody to tell.
        limits: of this job.
    """

    def __init__(self, *, owns_group: bool, heartbeat: Heartbeat, limits: TimeLimits) -> None:
        self.heartbeat = heartbeat
        self._owns_group, self._limits = owns_group, limits

    @contextlib.contextmanager
    def training(self, step: Callable[[], int]) -> Iterator[None]:
        """Around the steps; `step` gives the number of the one that this rank is in. The first ones have begun."""
        self.heartbeat.step = step
        yield
        self.heartbeat.step = None  # with an error it stays, for the last words

    def started(self) -> None:
        """The first steps are over: from now on a collective that hangs is a lost rank, and no compiler."""
        self._bound(self._limits.collective_s)
        self.heartbeat.silence_s = self._limits.silence_s

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Collectives inside have as long as at the start."""
        before = self.heartbeat.limit_s
        self._bound(self._limits.start_s)
        try:
            yield
        finally:
            self._bound(before)

    def end(self, error: BaseException | None) -> None:
        """Leave the group.

        Args:
            error: that ends this rank's part. The others wait in a collective that will never be complete, and to close
                the group would wait for them, before anybody sees the error. So they are told, and the group is
                abandoned. None: every rank has made its last collective.
        """
        if not self._owns_group:
            return
        self._owns_group = False
        if error is not None:
            self.heartbeat.fails(error)
            abandon_process_group()
            return
        if dist.is_initialized():
            leave_process_group()
        self.heartbeat.stop()

    def _bound(self, seconds: float) -> None:
        self.heartbeat.limit_s = seconds
        set_timeout = getattr(dist.distributed_c10d, "_set_pg_timeout", None)  # private in torch 2.11 and 2.13
        if self._owns_group and set_timeout is not None and dist.is_initialized():
            set_timeout(timedelta(seconds=seconds))


def join_process_group(environ: MutableMapping[str, str], device: torch.device, limits: TimeLimits) -> Membership:
    """Join the job that the environment describes, if it describes one: see `open_process_group`.

    Args:
        environ: as a launcher sets it. NCCL's settings that it lacks are added.
        device: of this rank.
        limits: of the job.

    Raises:
        LauncherError: if ranks are missing, rank 0 cannot be reached, two ranks have the same GPU, or the backend
            cannot connect the ranks.
    """
    end_abandoned_group()
    rank, world_size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    owns_group = not dist.is_initialized()
    heartbeat = Heartbeat(rank, world_size, every_s=limits.heartbeat_s, limit_s=limits.start_s)
    if owns_group and _is_described(environ, device, world_size):
        if world_size == 1:  # torch requires an address even for one process
            environ.setdefault("MASTER_ADDR", "127.0.0.1")
            environ.setdefault("MASTER_PORT", "0")
        open_process_group(environ, device, timeout_s=limits.start_s, rendezvous_timeout_s=limits.rendezvous_s)
        if world_size > 1:
            heartbeat.start(_get_default_store())
    return Membership(owns_group=owns_group, heartbeat=heartbeat, limits=limits)


def require_same_job(environ: Mapping[str, str], seen: int, device: torch.device, chosen: torch.device) -> None:
    """Check what accelerate has made of the environment.

    Args:
        environ: as the launcher sets it.
        seen: the number of processes that accelerate sees.
        device: of this rank.
        chosen: the device that accelerate has chosen.

    Raises:
        LauncherError: if it sees other ranks, or has chosen another device.
    """
    started = int(environ.get("WORLD_SIZE", "1"))
    if seen != started:
        raise LauncherError(
            f"The launcher started {started} processes, but accelerate sees {seen}: every rank would train alone "
            "and write the same files. On a machine without GPU start with `torchrun --nproc-per-node N` or "
            "`accelerate launch --multi_gpu --num_processes N`, and unset ACCELERATE_* variables of other runs."
        )
    is_indexed = device.type == "cuda" and chosen.index is not None
    if chosen.type != device.type or (is_indexed and chosen != device):
        raise LauncherError(
            f"This rank has {device}, but accelerate has chosen {chosen}: a variable such as ACCELERATE_USE_CPU or "
            "ACCELERATE_TORCH_DEVICE overrides it. Unset it. To train on the CPU of a machine with GPUs, set "
            "CUDA_VISIBLE_DEVICES to nothing."
        )


def _is_described(environ: Mapping[str, str], device: torch.device, world_size: int) -> bool:
    """As accelerate decides it, which reuses the group that it finds."""
    has_local_rank = "LOCAL_RANK" in environ
    return "RANK" in environ and (has_local_rank or (world_size > 1 and device.type == "cpu"))

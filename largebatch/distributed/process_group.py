"""The process group of a job: one communicator from the start, and two ways out of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, MutableMapping
from concurrent.futures import TimeoutError
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from largebatch.distributed.rendezvous import LauncherError, rendezvous
from largebatch.distributed.waiting import within

ABORT_S = 10.0
_LEFT_GROUPS: list[Any] = []
_ABANDONED: list[Any] = []
# What NCCL and InfiniBand read when a group starts. A value of the user's own stays.
_OF_NCCL = {
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",  # collectives that the flight recorder keeps
    ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    # Loading processes are forked after InfiniBand is up. Without these, kernels before 5.12 corrupt registered memory.
    ("RDMAV_FORK_SAFE",): "1",
    ("IBV_FORK_SAFE",): "1",
}


def own_device(environ: Mapping[str, str]) -> torch.device:
    """The GPU of this rank, by LOCAL_RANK; the CPU on a machine without.

    Where a process manager shows each process only its own GPUs, LOCAL_RANK counts on: so it is taken modulo the number
    of GPUs. The rendezvous refuses two ranks on one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def open_process_group(
    environ: MutableMapping[str, str], device: torch.device, *, timeout_s: float, rendezvous_timeout_s: float
) -> None:
    """Meet the other ranks and open the process group that the launcher's environment describes.

    NCCL connects here, because it is told the device: a broken network fails now, with a name, instead of in the first
    step. Sends between two ranks use the same communicator, where torch would otherwise make one for each pair.

    Args:
        environ: as a launcher sets it. NCCL's settings that it lacks are added.
        device: of this rank.
        timeout_s: seconds after which an incomplete collective fails.
        rendezvous_timeout_s: seconds to wait for the other ranks.

    Raises:
        LauncherError: if ranks are missing, rank 0 cannot be reached, two ranks have the same GPU, or the backend
            cannot connect the ranks.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
        for names, value in _OF_NCCL.items():
            if not any(name in environ for name in names):
                environ[names[0]] = value
    limit, gpu = timedelta(seconds=timeout_s), gpu_address(device) if is_cuda else None
    with rendezvous(environ, timeout_s=rendezvous_timeout_s, gpu=gpu) as store:
        met: dict[str, Any] = {}
        if store is not None:
            store.set_timeout(limit)
            met = {"store": store, "rank": int(environ["RANK"]), "world_size": int(environ["WORLD_SIZE"])}
        try:
            dist.init_process_group(
                "nccl" if is_cuda else "gloo",
                **met,
                timeout=limit,
                device_id=device if is_cuda else None,
            )
        except RuntimeError as error:
            who = f"Rank {environ['RANK']} of {environ['WORLD_SIZE']}"
            raise LauncherError(
                f"{who} met the others, but its backend cannot connect to them: {str(error).partition(chr(10))[0]}. "
                "Run `largebatch doctor` on this node, set NCCL_DEBUG=INFO to see which link fails, and "
                "NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME if the wrong interface is taken."
            ) from error


def gpu_address(device: torch.device) -> str:
    """What tells one GPU from another: host and PCI address, by which NCCL compares ranks; else the GPU's own id.

    MIG slices of a GPU share its PCI address.
    """
    properties: Any = torch.cuda.get_device_properties(device)
    if not hasattr(properties, "pci_bus_id"):
        return f"{properties.name} {properties.uuid}"
    boot = Path("/proc/sys/kernel/random/boot_id")  # host names may repeat
    host = boot.read_text(encoding="ascii").strip() if boot.exists() else os.uname().nodename
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}"
    return f"{properties.name} {address} {host}"


def leave_process_group() -> None:
    """Destroy the process group of this job, after the last collective of every rank.

    Under NCCL this waits for the other ranks: with an error on its way use `abandon_process_group`.

    Gloo's destructor joins its threads while it holds the GIL, and they may need the GIL to release the last tensors: a
    deadlock, seen with torch 2.13 in the destructor of DDP's reducer. So the group object is kept until the interpreter
    exits, when its threads are idle.
    """
    _LEFT_GROUPS.append(dist.group.WORLD)
    dist.destroy_process_group()


def abandon_process_group() -> None:
    """Leave the process group alone, because this rank has an error and the others wait in a collective.

    Destroying it would wait for them, for as long as a collective may take, before anybody sees the error. Instead the
    error goes its way. If nothing catches it, the process prints it and ends at once, without finalizing the
    interpreter, which would destroy the group as well. If something does, `end_abandoned_group` makes room for another.
    """
    _ABANDONED.append(dist.group.WORLD)
    if not isinstance(sys.excepthook, _LastWords):
        sys.excepthook = _LastWords(sys.excepthook)


def end_abandoned_group() -> None:
    """Abort a group that an error has left behind.

    Raises:
        LauncherError: if that takes more than `ABORT_S` seconds.
    """
    if not _ABANDONED:
        return
    _LEFT_GROUPS.extend(_ABANDONED)
    was_current = dist.is_initialized() and dist.group.WORLD is _ABANDONED[-1]
    _ABANDONED.clear()
    try:
        if was_current:
            within(ABORT_S, _abort)
    except TimeoutError:
        raise LauncherError(
            f"The process group that an error has left behind did not close within {ABORT_S:g} s, so no other can be "
            "opened in this process. Start a new one."
        ) from None


def _abort() -> None:
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)  # private in torch 2.11 and 2.13
    if abort is None or dist.get_backend() != "nccl":
        dist.destroy_process_group()
    else:
        abort()


class _LastWords:
    """An excepthook that prints the error as the one before it does, and ends the process at once."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._before(kind, error, trace)
        if _ABANDONED and threading.current_thread() is threading.main_thread():
            for screen in (sys.stdout, sys.stderr):
                screen.flush()
            os._exit(130 if issubclass(kind, KeyboardInterrupt) else 1)

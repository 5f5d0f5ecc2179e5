"""Cores, memory, shared memory, open files, and the disk that runs are written to."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from largebatch.distributed.host_memory import container_limit, machine_memory
from largebatch.run.doctor.diagnosis import Diagnosis

_GIB, _MIB = 1 << 30, 1 << 20
_LITTLE_SHARED = 1 * _GIB  # docker gives 64 MiB, which a worker of a loader fills with its first batches
_LITTLE_DISK = 5 * _GIB
_FEW_FILES = 4096


def cores(environ: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Threads of all processes of this machine against its cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = environ.get("LOCAL_WORLD_SIZE", "1")
    processes = int(text) if text.isdecimal() and int(text) else 1
    threads = torch.get_num_threads()
    found = f"{usable} usable; a job takes {processes} (processes here) x {threads} (threads)"
    if processes * threads > usable:
        yield Diagnosis("cores", "note", found, f"export OMP_NUM_THREADS={max(1, usable // processes)}")
    else:
        yield Diagnosis("cores", "ok", found)


def memory() -> Iterator[Diagnosis]:
    """What the container may take, where a limit is set."""
    usable = machine_memory()
    whose = " of the container" if usable == container_limit() else ""
    yield Diagnosis("memory", "ok", f"{usable / _GIB:.1f} GiB{whose}")


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Diagnosis]:
    """Through which workers of a loader hand over their batches."""
    if not path.is_dir():
        yield Diagnosis("shared memory", "note", f"{path} does not exist", "leave data.num_workers at 0")
        return
    usage = shutil.disk_usage(path)
    found = f"{usage.free / _MIB:,.0f} of {usage.total / _MIB:,.0f} MiB free in {path}"
    if usage.free < _LITTLE_SHARED:
        remedy = "docker run --ipc=host, or --shm-size=8g; or data.num_workers=0"
        yield Diagnosis("shared memory", "note", f"{found}: little for data.num_workers > 0", remedy)
    else:
        yield Diagnosis("shared memory", "ok", found)


def open_files() -> Iterator[Diagnosis]:
    """The limit on open files, which sockets between ranks and shared tensors use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        yield Diagnosis("open files", "note", f"{soft} at most", f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    else:
        yield Diagnosis("open files", "ok", f"{soft if soft > 0 else 'any number'} at most")


def disk(folder: Path) -> Iterator[Diagnosis]:
    """Whether checkpoints can be written, renamed and locked where runs go; leaves nothing behind."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    remedy = "choose another disk with run.root=FOLDER or run.dir=FOLDER"
    if not existing.is_dir():
        yield Diagnosis("disk", "problem", f"{existing} is a file", remedy)
        return
    usage = shutil.disk_usage(existing)
    found = f"{usage.free / _GIB:,.1f} GiB free in {existing}"
    if usage.total and usage.free < _LITTLE_DISK:
        yield Diagnosis("disk", "note", found, "make room, or " + remedy)
    else:
        yield Diagnosis("disk", "ok", found)
    try:
        _try_disk(existing)
    except OSError as error:
        told = f"{existing}: {errno.errorcode.get(error.errno or 0, 'error')}, {error.strerror or error}"
        yield Diagnosis("writing", "problem", told, remedy)
    else:
        yield Diagnosis("writing", "ok", "write, fsync, rename and lock work")


def _try_disk(folder: Path) -> None:
    """What saving a checkpoint needs of a file system."""
    place = folder / f".largebatch-doctor-{secrets.token_hex(4)}"
    place.mkdir()
    try:
        with (place / "a").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(b"\0" * _MIB)
            file.flush()
            os.fsync(file.fileno())
        os.rename(place / "a", place / "b")
    finally:
        shutil.rmtree(place, ignore_errors=True)

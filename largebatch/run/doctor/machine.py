"""Checks versions, devices, cores, memory, open files, and the disk of the run folder."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import resource
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from largebatch.distributed.host_memory import container_limit, machine_memory
from largebatch.run.doctor.finding import Finding

_GIB, _MIB = 1 << 30, 1 << 20
_LITTLE_SHARED, _LITTLE_DISK = 1 * _GIB, 5 * _GIB  # docker's default of 64 MiB is full after a loader's first batches
_FEW_FILES = 4096
_SOCKETS_PER_RANK, _OWN_FILES = 3, 512  # the meeting, the word of rank 0, signs of life; libraries and data
_OTHER_DISK = "Choose another disk with run.root=FOLDER or run.dir=FOLDER."


def versions() -> Iterator[Finding]:
    """Every package that a run needs, against the version range in largebatch's metadata."""
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for text in importlib.metadata.requires("largebatch") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield of_package(requirement)


def of_package(requirement: Requirement) -> Finding:
    """Whether an installed package is in the range."""
    name, wanted = requirement.name, str(requirement.specifier)
    remedy = f'Run pip install "{name}{wanted}".'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "problem", f"not installed. {remedy}")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "problem", f"{version}; needs {wanted}. {remedy}")
    return Finding(name, "ok", f"{version} ({wanted})")


def devices() -> Iterator[Finding]:
    """GPUs, or the reason that there is none; backends of torch.distributed; the compiler for kernels."""
    has_gpu, built_for = torch.cuda.is_available(), torch.version.cuda
    for number in range(torch.cuda.device_count() if has_gpu else 0):
        of_it, (free, total) = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)
        bf16 = "bfloat16" if of_it.major >= 8 else "no bfloat16: use precision=fp16"
        room = f"{free / _GIB:.0f} of {total / _GIB:.0f} GiB free"
        yield Finding(f"GPU {number}", "ok", f"{of_it.name}, sm_{of_it.major}{of_it.minor}, {room}, {bf16}")
    if not has_gpu and built_for is not None and shutil.which("nvidia-smi"):
        found = f"torch for CUDA {built_for} sees none, though a driver is there. Compare `nvidia-smi` (driver, its "
        yield Finding("GPU", "problem", f"{found}CUDA version) with torch.version.cuda; look at CUDA_VISIBLE_DEVICES.")
    elif not has_gpu:
        why = "this torch is built for CPUs" if built_for is None else f"no driver; torch is for CUDA {built_for}"
        yield Finding("GPU", "note", f"none: {why}.")
    backends = [name for name in ("gloo", "nccl") if dist.is_available() and getattr(dist, f"is_{name}_available")()]
    needed = "nccl" if has_gpu else "gloo"
    lacks = "" if needed in backends else f"; this machine needs {needed}. Install a torch from pytorch.org with it."
    yield Finding("backends", "problem" if lacks else "ok", (", ".join(backends) or "none") + lacks)
    compiler = next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    missing = "none: LARS and LAMB are slower, and precision.compile fails. Install gcc or clang."
    yield Finding("compiler", "ok" if compiler else "note", compiler or missing)


def cores(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Threads of all processes of this machine against its cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = environ.get("LOCAL_WORLD_SIZE", "1")
    processes, threads = int(text) if text.isdecimal() and int(text) else 1, torch.get_num_threads()
    found = f"{usable} usable; a job takes {processes} (processes here) x {threads} (threads)"
    too_many = processes * threads > usable
    remedy = f". Run export OMP_NUM_THREADS={max(1, usable // processes)}." if too_many else ""
    yield Finding("cores", "note" if too_many else "ok", found + remedy)


def memory(shared: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Memory of the machine or container, and the shared memory that loader workers need."""
    usable = machine_memory()
    whose = " of the container" if usable == container_limit() else ""
    yield Finding("memory", "ok", f"{usable / _GIB:.1f} GiB{whose}")
    if not shared.is_dir():
        yield Finding("shared memory", "note", f"{shared} does not exist. Leave data.num_workers at 0.")
        return
    usage = shutil.disk_usage(shared)
    found, is_little = f"{usage.free / _MIB:,.0f} MiB free in {shared}", usage.free < _LITTLE_SHARED
    remedy = ": little for data.num_workers > 0. Run docker with --ipc=host or --shm-size=8g." if is_little else ""
    yield Finding("shared memory", "note" if is_little else "ok", found + remedy)


def open_files(num_ranks: int = 1) -> Iterator[Finding]:
    """The limit on open files, for a job of `num_ranks`: sockets between ranks and shared tensors count towards it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_FEW_FILES, _SOCKETS_PER_RANK * num_ranks + _OWN_FILES)
    if 0 <= hard < needed and num_ranks > 1 and needed > _FEW_FILES:
        fact = (
            f"{hard} at most, and the process that holds the store of {num_ranks} ranks needs {needed}: "
            f"{_SOCKETS_PER_RANK} connections of each rank. Have the hard limit raised (LimitNOFILE of the daemon)."
        )
        yield Finding("open files", "problem", fact)
    elif 0 <= soft < needed:
        enough = max(min(hard, 65536), needed) if hard > 0 else max(65536, needed)
        fact = f"{soft} at most. The scripts in launch/ that use torchrun raise it; for others run ulimit -n {enough}."
        yield Finding("open files", "note", fact)
    else:
        yield Finding("open files", "ok", f"{soft if soft > 0 else 'any number'} at most")


def disk(folder: Path) -> Iterator[Finding]:
    """Whether checkpoints can be written, renamed and locked in the run folder; removes its test files."""
    usage = shutil.disk_usage(folder)
    found, is_little = f"{usage.free / _GIB:,.1f} GiB free in {folder}", usage.total and usage.free < _LITTLE_DISK
    yield Finding("disk", "note" if is_little else "ok", f"{found}. Make room." if is_little else found)
    try:
        _try_disk(folder)
    except OSError as error:
        fact = f"{folder}: {errno.errorcode.get(error.errno or 0, 'error')}, {error.strerror or error}. {_OTHER_DISK}"
        yield Finding("writing", "problem", fact)
    else:
        yield Finding("writing", "ok", "write, fsync, rename and lock work")


def _try_disk(folder: Path) -> None:
    """Perform the file operations of saving a checkpoint."""
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

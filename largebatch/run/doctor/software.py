"""Versions against what largebatch asks for, devices, backends and compilers."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator

import torch
import torch.distributed
from packaging.requirements import Requirement

from largebatch.run.doctor.diagnosis import Diagnosis

_GIB = 1 << 30


def versions() -> Iterator[Diagnosis]:
    """Every package that a run needs, against the range that our own metadata asks for."""
    yield Diagnosis("python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for text in importlib.metadata.requires("largebatch") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield of_package(requirement)


def of_package(requirement: Requirement) -> Diagnosis:
    """Whether an installed package is in the range."""
    name, wanted = requirement.name, str(requirement.specifier)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Diagnosis(name, "problem", "not installed", f'pip install "{name}{wanted}"')
    if not requirement.specifier.contains(version, prereleases=True):
        return Diagnosis(name, "problem", f"{version}; needs {wanted}", f'pip install "{name}{wanted}"')
    return Diagnosis(name, "ok", f"{version} ({wanted})")


def devices() -> Iterator[Diagnosis]:
    """GPUs, and why there is none."""
    if not torch.cuda.is_available():
        yield _no_gpu()
        return
    for number in range(torch.cuda.device_count()):
        of_it = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if of_it.major >= 8 else "no bfloat16: use precision=fp16"
        free, total = torch.cuda.mem_get_info(number)
        found = f"{of_it.name}, sm_{of_it.major}{of_it.minor}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free, {bf16}"
        yield Diagnosis(f"GPU {number}", "ok", found)


def _no_gpu() -> Diagnosis:
    if torch.version.cuda is None:
        return Diagnosis("GPU", "note", "none: this torch is built for CPUs", "for a GPU, install torch built for CUDA")
    if shutil.which("nvidia-smi") is None:
        return Diagnosis("GPU", "note", f"none: torch is built for CUDA {torch.version.cuda}, but there is no driver")
    remedy = "compare `nvidia-smi` (driver, its CUDA version) with torch.version.cuda; look at CUDA_VISIBLE_DEVICES"
    return Diagnosis(
        "GPU", "problem", f"torch for CUDA {torch.version.cuda} sees none, though a driver is there", remedy
    )


def backends() -> Iterator[Diagnosis]:
    """What ranks talk through, and what compiles kernels."""
    if not torch.distributed.is_available():
        yield Diagnosis(
            "torch.distributed", "problem", "missing in this build of torch", "install torch from pytorch.org"
        )
        return
    has = {"gloo": torch.distributed.is_gloo_available(), "nccl": torch.distributed.is_nccl_available()}
    needed = "nccl" if torch.cuda.is_available() else "gloo"
    found = ", ".join(name for name, there in has.items() if there) or "none"
    if has[needed]:
        yield Diagnosis("backends", "ok", found)
    else:
        yield Diagnosis(
            "backends", "problem", f"{found}; this machine needs {needed}", f"install a torch with {needed}"
        )
    compiler = next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    if compiler:
        yield Diagnosis("compiler", "ok", compiler)
    else:
        yield Diagnosis(
            "compiler", "note", "none: optimizer.compile and precision.compile fail", "install gcc or clang"
        )

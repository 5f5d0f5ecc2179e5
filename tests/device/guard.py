"""Builds `cuda_guard.cpp`, once per build of torch, and loads it before torch."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda_guard.cpp")


def unavailable() -> str | None:
    """Why no guard can be built here; None: it can."""
    if shutil.which("g++") is None:
        return "g++, which builds the guard of fake CUDA devices, is not installed"
    # Its text, because torch must not be imported before the guard is loaded.
    if re.search(r"^cuda\b.*= *'", (_torch() / "version.py").read_text(), re.MULTILINE):
        return "this torch is built for CUDA, and has a guard of its own: use a build for CPUs"
    return None


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def built_guard() -> Path:
    """The shared library, from the cache or built now: 3 to 10 seconds.

    Raises:
        subprocess.CalledProcessError: with the compiler's message.
    """
    torch = _torch()
    build = (torch / "version.py").read_bytes() + SOURCE.read_bytes() + str(torch).encode()
    name = f"largebatch_cuda_guard_{os.getuid()}_{hashlib.sha256(build).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        half = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
        links = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
        command = [
            "g++",
            "-O0",
            "-std=c++20",
            "-shared",
            "-fPIC",
            "-w",
            *includes,
            str(SOURCE),
            "-o",
            str(half),
            *links,
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        half.replace(library)
    return library


def load_guard(library: Path) -> None:
    """Load it into this process, import torch, and let the device appear after a first backward pass."""
    guard = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import torch

    torch.ones((), requires_grad=True).backward()
    guard.device_appears()

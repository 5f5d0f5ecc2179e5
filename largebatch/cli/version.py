"""`largebatch --version`: the versions that matter in a report of an error, without importing anything."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import largebatch

_PACKAGES = ("torch", "accelerate", "hydra-core", "omegaconf", "pydantic", "wandb", "numpy", "safetensors")
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
_DRIVER = Path("/proc/driver/nvidia/version")


def version_lines() -> list[str]:
    """One line per part; the first is ours."""
    rows = [("python", f"{platform.python_version()} ({sys.executable})")]
    for name in _PACKAGES:
        rows += [(name, _version(name) or "not installed")]
        rows += [("CUDA", _cuda()), ("NCCL", _nccl())] if name == "torch" else []
    rows += [("driver", _driver()), ("platform", platform.platform())]
    return [f"largebatch {largebatch.__version__}", *(f"{name:11} {text}" for name, text in rows)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cuda() -> str:
    """The CUDA that torch was built for, as its file says; ROCm for a build of AMD."""
    spec = importlib.util.find_spec("torch")  # finds, does not import
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else Path()
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *'([^']*)'", text, re.MULTILINE))
    return found.get("cuda") or (f"ROCm {found['hip']}" if "hip" in found else "none: a build for CPUs")


def _nccl() -> str:
    return next((f"{found} ({name})" for name in _NCCL if (found := _version(name))), "none, or inside torch's build")


def _driver() -> str:
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return "no NVIDIA driver"
    return found[0] if found else "unknown"

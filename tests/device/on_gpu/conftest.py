"""What only a real GPU shows. `launch/gpu_check.sh` runs this folder; LARGEBATCH_REHEARSAL=cpu runs it without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REHEARSES = os.environ.get("LARGEBATCH_REHEARSAL") == "cpu" and not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def gpu() -> None:
    """Skip without a GPU, unless it is only rehearsed."""
    if not torch.cuda.is_available() and not REHEARSES:
        pytest.skip("there is no GPU for CUDA here")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Overrides of a short run in a folder of its own."""
    short = ["data.limit=64", "batch.total=16"] if REHEARSES else ["batch.total=256"]
    return [*short, "length=6steps", "logger=none", "observers.progress=false", f"run.dir={tmp_path / 'run'}"]

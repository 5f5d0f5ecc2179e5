"""What several GPUs show: a rank that raises, hangs or is killed ends the job soon, and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.device.on_gpu.conftest import REHEARSES
from tests.end_to_end.test_launchers import environment

ROOT = Path(__file__).resolve().parents[3]
CARDS = 2 if REHEARSES else torch.cuda.device_count()
RUN = [
    "-m", "largebatch", "train", "model._target_=tests.device.on_gpu.late_rank.LateRank", "~model.num_classes",
    "~model.in_channels", "~model.width", "data.limit=64", "batch.total=16", "length=200steps", "logger=none",
    "observers.progress=false", "launcher.start_timeout_s=40", "launcher.collective_timeout_s=40",
    "launcher.heartbeat_s=2",
]  # fmt: skip


@pytest.mark.skipif(CARDS < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    ("what", "said"),
    [("raise", "ArithmeticError: planted"), ("kill", "SIGKILL"), ("hang", f"rank {CARDS - 1}")],
)
def test_a_job_whose_rank_is_lost_ends_soon_and_names_it(tmp_path: Path, what: str, said: str):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CARDS)]
    job = subprocess.run(
        [*launcher, *RUN, f"+model.what={what}", f"run.dir={tmp_path / 'run'}"],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment() | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert job.returncode != 0
    assert said in job.stdout + job.stderr

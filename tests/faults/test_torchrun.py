"""Faults that are about the launcher: a real torchrun with two ranks for each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from largebatch.checkpoint import newest_valid
from largebatch.trackers import read_metrics
from tests.faults.jobs import Job


def saved_step(folder: Path) -> int:
    checkpoint, rejected = newest_valid(folder / "checkpoints")
    assert checkpoint is not None
    assert rejected == []
    return checkpoint.step


def test_a_killed_rank_ends_the_job_and_both_sides_name_it(tmp_path: Path):
    with Job(tmp_path / "run") as job:
        job.wait_for_step(3)
        os.kill(job.rank_pid(1), signal.SIGKILL)
        ended = job.end(within_s=60)
    assert ended.code == 1
    assert "LostRankError: Rank 1 left the run or does not answer: rank 0 waited in step" in ended.output
    assert "Signal 9 (SIGKILL) received" in ended.output, "as torchrun tells it"


def test_ctrl_c_is_one_request_to_stop_although_each_rank_gets_it_twice(tmp_path: Path):
    """From the terminal and from torchrun, as launch/torchrun.sh starts it; a bare one ends with its own traceback."""
    with Job(tmp_path / "run", launcher="torchrun.sh") as job:
        job.wait_for_step(3)
        os.killpg(job.agent.pid, signal.SIGINT)
        ended = job.end(within_s=60)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == saved_step(tmp_path / "run")
    assert "resume=auto" in ended.output
    assert ended.code == 128 + signal.SIGINT
    assert "Traceback" not in ended.output


def test_no_rank_survives_a_launcher_that_is_killed(tmp_path: Path):
    with Job(tmp_path / "run") as job:
        job.wait_for_step(3)
        os.kill(job.rank_pid(1), signal.SIGSTOP)
        os.kill(job.agent.pid, signal.SIGKILL)
        job.end(within_s=5)
        end = time.monotonic() + 5
        while job.processes() and time.monotonic() < end:
            time.sleep(0.05)
        assert job.processes() == set(), "neither one that waits nor one that is stopped"

"""A study as people leave it alone with: killed, interrupted, and shared out over jobs by a launcher of Hydra."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from largebatch.__main__ import main
from tests.faults.processes import marked_processes

TINY = [
    "experiment=study/quadratic", "study.batch_sizes=[64,128]", "study.trials=2", "study.seeds=1",
    "data.train.num_samples=1024", "length=8192samples", "study.target.value=2.0",
]  # fmt: skip
DEADLINE_S = 300
MARK = "LARGEBATCH_TEST_STUDY"


class Started:
    """A study of two workers in a process group of its own, whose processes can be found again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "largebatch", "study", *TINY, f"run.dir={folder}", "study.workers=2"],
            env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_rows(self, count: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while len(rows_of(self.folder)) < count and self.process.poll() is None:
            assert time.monotonic() < end, "no run has finished"
            time.sleep(0.02)

    def output(self) -> str:
        try:
            return self.process.communicate(timeout=DEADLINE_S)[0]
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    def survivors_after(self, seconds: float) -> set[int]:
        end = time.monotonic() + seconds
        while (alive := marked_processes(f"{MARK}={self.mark}")) and time.monotonic() < end:
            time.sleep(0.1)
        return alive


def rows_of(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("trials*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def points_of(folder: Path) -> list[dict]:
    """What a study says; which trials were stopped early, and so its rows, depends on what ran side by side."""
    return json.loads((folder / "study.json").read_text())["numbers"]["points"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    assert main(["study", *TINY, f"run.dir={folder}"]) == 0
    return folder


def sweep(folder: Path, launcher: str) -> int:
    """Make a study in two shares, by a launcher of Hydra."""
    shares = ["--multirun", "study.shares=2", "study.share=0,1", f"hydra/launcher={launcher}"]
    code = main(["study", *TINY, *shares, f"run.dir={folder}", f"hydra.sweep.dir={folder}.sweep"])
    assert len(list(folder.glob("trials.share*of2.jsonl"))) == 2
    return code


def test_a_killed_study_leaves_no_process_behind_and_loses_its_running_trials_only(reference: Path, tmp_path: Path):
    killed = Started(tmp_path / "study")
    killed.wait_for_rows(2)
    killed.process.kill()
    assert killed.survivors_after(10) == set()
    finished = rows_of(killed.folder)
    assert 2 <= len(finished) < len(rows_of(reference)), "killed too late to show anything"
    assert sweep(killed.folder, "basic") == 0  # the rest of it, as one process now that makes a share after the other
    assert [row for row in rows_of(killed.folder) if row in finished] == finished
    assert points_of(killed.folder) == points_of(reference)


def test_ctrl_c_ends_a_study_between_steps_and_says_how_it_goes_on(reference: Path, tmp_path: Path):
    started = Started(tmp_path / "study")
    started.wait_for_rows(1)
    os.killpg(started.process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    output = started.output()
    assert started.process.returncode == 130, output
    assert f"the same command with run.dir={started.folder} continues" in output
    assert "Traceback" not in output
    assert started.survivors_after(10) == set()
    assert len(rows_of(started.folder)) < len(rows_of(reference)), "interrupted too late to show anything"


def test_shares_in_processes_of_a_sweep_make_the_same_study(reference: Path, tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert sweep(tmp_path / "study", "joblib") == 0
    assert points_of(tmp_path / "study") == points_of(reference)


def test_a_job_of_another_process_that_fails_makes_the_sweep_fail(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = ["--multirun", "study.shares=2", "study.share=0", "hydra/launcher=joblib", "study.target.value=1000"]
    folders = [f"run.dir={tmp_path / 'study'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert main(["study", *TINY, *sweep, *folders]) == 1
    said = capfd.readouterr().err
    assert "study.target.value=1000" in said
    assert "a job of the sweep ended with exit code 2; its own output says why" in said
    assert "Traceback" not in said

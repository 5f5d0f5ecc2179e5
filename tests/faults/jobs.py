"""Real jobs that faults are injected into from outside, and the search for processes that survive them.

    with Job(tmp_path / "run") as job:
        job.wait_for_step(3)
        os.kill(job.rank_pid(1), signal.SIGKILL)
        ended = job.end()

A job has a session of its own, a mark in its environment that all its processes inherit, and a deadline. Whatever
happens, leaving the `with` block ends what carries the mark, and a survivor of a job that had ended fails the test.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from tests.faults import shown
from tests.faults.processes import marked_processes, parent_of

MARK = "LARGEBATCH_FAULT_JOB"
DEADLINE_S = 300.0  # two ranks that import torch from a cold disk on a crowded machine
ROOT = Path(__file__).resolve().parents[2]
_HIDDEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "WANDB_API_KEY")

# Endless until something happens to it; ranks wait for each other in every step.
ENDLESS = (
    "data=digits", "data.limit=120", "data.augment.crop_padding=1", "model=mlp", "model.hidden=[8]", "batch.total=24",
    "batch.max_micro=8", "length=10000000steps", "schedule=constant", "schedule.warmup=0ep", "logger=none",
    "observers.progress=false", "observers.metrics.every=1", "observers.evaluation.every=null",
    "observers.replicas.every=1",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a job ended: the exit code of what was started, and all that was printed."""

    code: int
    output: str


# What starts `-m largebatch train ...` in N processes; accelerate's own agent is torchrun's.
_LAUNCHERS: dict[str, Callable[[int], list[str]]] = {
    "plain": lambda ranks: [],
    "torchrun": lambda ranks: ["-m", "torch.distributed.run", *_agent(ranks)],
    "torchrun.sh": lambda ranks: ["launch/bounded_torchrun.py", *_agent(ranks)],
    "accelerate": lambda ranks: [
        "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", str(ranks),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
}  # fmt: skip


# As launch/torchrun.sh sets them.
_SETTINGS = {
    "torchrun.sh": {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100",
        "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    }
}


def _agent(ranks: int) -> list[str]:
    return ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "0"]


class Job:
    """`largebatch train` in processes of its own, as a context manager.

    Args:
        folder: of the run.
        overrides: after those of `ENDLESS`.
        launcher: `plain` (one process, no launcher), `torchrun`, `accelerate`, or `torchrun.sh` for what
            launch/torchrun.sh starts.
        ranks: how many processes train.
        group: the overrides that come first, in place of `ENDLESS`.
    """

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        launcher: str = "torchrun",
        ranks: int = 2,
        group: Sequence[str] = ENDLESS,
    ) -> None:
        assert launcher != "plain" or ranks == 1, "without a launcher there is one process"
        self._folder = folder
        self.ranks = ranks
        self._is_plain = launcher == "plain"
        shown.note(launcher, ranks, (*group, *overrides))
        self._settings = _SETTINGS.get(launcher, {})
        self._mark = f"{MARK}={secrets.token_hex(8)}"
        self._log = folder.with_name(f"{folder.name}.{secrets.token_hex(2)}.log")
        self._command = [
            sys.executable, *_LAUNCHERS[launcher](ranks),
            "-m", "largebatch", "train", *group, f"run.dir={folder}", *overrides,
        ]  # fmt: skip

    def __enter__(self) -> Job:
        kept = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        name, _, value = self._mark.partition("=")
        with self._log.open("wb") as output:
            self.agent = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", name: value} | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._deadline = time.monotonic() + DEADLINE_S
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        has_ended = self.agent.poll() is not None
        orphans = self.processes() if has_ended else set()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.kill()
        self.agent.wait()
        if kind is None:
            assert has_ended, "the test left a job running"
            assert orphans == set(), f"{len(orphans)} processes outlived their job:\n{self.output()}"

    def output(self) -> str:
        """What all processes have printed so far."""
        return self._log.read_text(errors="replace")

    def processes(self) -> set[int]:
        """Every process of this job that is alive."""
        return marked_processes(self._mark)

    def rank_pid(self, rank: int) -> int:
        """The process of a rank, not one that loads for it."""
        if self._is_plain:
            return self.agent.pid
        all_of_it = marked_processes(self._mark, f"RANK={rank}")
        (pid,) = (pid for pid in all_of_it if parent_of(pid) == self.agent.pid)
        return pid

    def loading_pids(self, rank: int) -> list[int]:
        """The processes that load for a rank: the children that it has, in the order of their numbers."""
        parent = self.rank_pid(rank)
        return sorted(pid for pid in self.processes() if parent_of(pid) == parent)

    def wait_for_step(self, step: int) -> None:
        """Until rank 0 has written the row of an optimizer step."""
        metrics = self._folder / "metrics.jsonl"
        self.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"train/loss") >= step, f"step {step}")

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Until something is so; a job that has ended before, or takes too long, fails the test."""
        while not is_so():
            if self.agent.poll() is not None or time.monotonic() > self._deadline:
                pytest.fail(f"never came to {what}:\n{self.output()}")
            time.sleep(0.05)

    def wait_for_silence(self, within_s: float) -> None:
        """Until every process of the job has gone; what started it is another's to wait for."""
        end = time.monotonic() + within_s
        while (alive := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        assert alive == set(), f"{len(alive)} processes outlived their job by {within_s:g} s:\n{self.output()}"

    def end(self, within_s: float | None = None) -> Ended:
        """Wait until the agent has ended.

        Args:
            within_s: fail if it takes longer; None: the deadline of the job.
        """
        left = self._deadline - time.monotonic() if within_s is None else within_s
        try:
            code = self.agent.wait(timeout=max(left, 0.0))
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {left:.0f} s:\n{self.output()}")
        return Ended(code, self.output())

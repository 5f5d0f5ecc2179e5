"""Every way out: a process ends soon, with its documented exit code, and none of its loading processes outlives it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from largebatch.cli.process.leaving import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED
from largebatch.distributed.signals import ECHO_S
from tests.faults.forked_rank import begin_to_load
from tests.faults.forks import call_in_forks, train_in_forks
from tests.faults.jobs import Job
from tests.faults.own_data import ordered
from tests.faults.planted import Fault
from tests.fork_server import forked_processes

DEADLINE_S = 60.0  # on a crowded machine; alone a run takes two
WAYS = {
    "SIGTERM": (Fault("after_backward", 5, "SIGTERM"), EXIT_STOPPED),
    "SIGINT": (Fault("after_backward", 5, "SIGINT"), EXIT_INTERRUPTED),
    "SIGHUP": (Fault("before_step", 5, "SIGHUP"), EXIT_STOPPED),
    "SIGTERM before the first batch": (Fault("before_step", 1, "SIGTERM"), EXIT_STOPPED),
    "SIGTERM, then SIGINT in an evaluation": (Fault("evaluation_mid", 4, "SIGTERM SIGINT"), EXIT_STOPPED),
    "bad sample": (Fault("before_step", 5, "order bad"), EXIT_FAILED),
    "diverged": (Fault("before_step", 5, "order nan"), EXIT_FAILED),
    "worker killed": (Fault("before_step", 5, "kill_worker"), EXIT_FAILED),
    "error in the model": (Fault("after_forward", 5, "raise"), EXIT_FAILED),
    "error in an observer": (Fault("log_mid", 5, "raise"), EXIT_FAILED),
    "sys.exit(0) in the model": (Fault("after_forward", 5, "exit"), EXIT_FAILED),
}


def gone_after(before: set[int], seconds: float) -> set[int]:
    """The processes that are there after so many seconds, and were not before."""
    end = time.monotonic() + seconds
    while (left := forked_processes() - before) and time.monotonic() < end:
        time.sleep(0.02)
    return left


@pytest.mark.fault(12)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_loading_processes_ends_with_its_code_and_they_end_with_it(way: str, golden: Path, tmp_path: Path):
    """One process with two that load, and two more in an evaluation. The golden run is to have the fork server."""
    fault, code = WAYS[way]
    orders = tmp_path / "orders"
    orders.mkdir()
    before, fault = forked_processes(), replace(fault, folder=orders)
    options = (*ordered(orders), "data.num_workers=2", "length=100000steps")
    ended = train_in_forks(tmp_path / "run", *options, fault=fault, deadline_s=DEADLINE_S)
    assert ended.codes == (code,), ended.output
    assert gone_after(before, 4.0) == set()


@pytest.mark.fault(13)
def test_a_process_of_multiprocessing_ends_in_the_middle_of_loading(golden: Path):
    """As a study's: it calls no exit functions, and waited for processes that leave their first SIGTERM to the run."""
    before = forked_processes()
    ended = call_in_forks(begin_to_load, ranks=1, deadline_s=DEADLINE_S)
    assert ended.codes == (0,), ended.output
    assert gone_after(before, 4.0) == set()


# ---- The table: real launchers ---------------------------------------------------------------------------------------

Strike = Callable[[Job, Path], None]


def _signals(*names: str, to_all: bool = False) -> Strike:
    """To what was started, or to all processes as from a terminal; a second one comes when it is no echo any more."""

    def strike(job: Job, orders: Path) -> None:
        send = os.killpg if to_all else os.kill
        for number, name in enumerate(names):
            time.sleep(ECHO_S + 0.5 if number else 0.0)
            send(job.agent.pid, getattr(signal, name))

    return strike


def _order(name: str) -> Strike:
    return lambda job, orders: (orders / name).touch()


def _kill_worker(job: Job, orders: Path) -> None:
    os.kill(job.loading_pids(job.ranks - 1)[-1], signal.SIGKILL)


def _kill_rank(job: Job, orders: Path) -> None:
    os.kill(job.rank_pid(job.ranks - 1), signal.SIGKILL)


@dataclass(frozen=True)
class Way:
    """What happens to a job, and the exit code of its ranks.

    Attributes:
        strike: what happens. code: of a rank. before: the order that stands from the start on.
        at: the answer that is waited for; None: step 3.
    """

    strike: Strike
    code: int
    before: str | None = None
    at: str | None = None


REAL = {
    "SIGTERM": Way(_signals("SIGTERM"), EXIT_STOPPED),
    "SIGINT": Way(_signals("SIGINT"), EXIT_INTERRUPTED),
    "SIGUSR1": Way(_signals("SIGUSR1"), EXIT_STOPPED),
    "bad sample": Way(_order("bad"), EXIT_FAILED),
    "diverged": Way(_order("nan"), EXIT_FAILED),
    "worker killed": Way(_kill_worker, EXIT_FAILED),
    "error in a rank": Way(_order("raise"), EXIT_FAILED),
}
WITH_TWO_WORKERS = {
    "SIGHUP": Way(_signals("SIGHUP"), EXIT_STOPPED),
    "Ctrl-C": Way(_signals("SIGINT", to_all=True), EXIT_INTERRUPTED),
    "rank killed": Way(_kill_rank, -signal.SIGKILL),
    "SIGTERM while building": Way(_signals("SIGTERM"), EXIT_STOPPED, "slow_build", "at_build"),
    "Ctrl-C while building": Way(_signals("SIGINT", to_all=True), EXIT_INTERRUPTED, "slow_build", "at_build"),
    "SIGTERM, first batch": Way(_signals("SIGTERM"), EXIT_STOPPED, "slow", "at_load"),
    "SIGTERM, evaluation": Way(_signals("SIGTERM"), EXIT_STOPPED, "evaluation/slow", "evaluation/at_load"),
    "Ctrl-C twice": Way(_signals("SIGINT", "SIGINT", to_all=True), EXIT_INTERRUPTED, "slow", "at_load"),
}
CELLS = [
    *((name, workers) for name in REAL for workers in (0, 1, 2) if workers or name != "worker killed"),
    *((name, 2) for name in WITH_TWO_WORKERS),
]


def code_under(launcher: str, way: str, code: int) -> int:
    """What becomes of the exit code of the ranks: torchrun makes 1 of all, and dies of SIGUSR1 or a second Ctrl-C."""
    if way == "Ctrl-C twice" and launcher != "plain":
        return -signal.SIGINT
    if launcher in ("torchrun", "accelerate"):
        return -signal.SIGUSR1 if way == "SIGUSR1" else 1
    return 128 - code if launcher == "torchrun.sh" and code < 0 else code


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Of the cells of this run, printed at its end."""
    rows: list[str] = []
    yield rows
    print("\n".join(["", "how it ends               launcher     workers  code  seconds  and its processes", *rows]))


@pytest.mark.fault(60)
@pytest.mark.soak
@pytest.mark.parametrize(("name", "workers"), CELLS)
@pytest.mark.parametrize("launcher", ["plain", "torchrun", "torchrun.sh", "accelerate"])
def test_a_job_ends_with_its_code_and_leaves_no_process(
    launcher: str, name: str, workers: int, tmp_path: Path, table: list[str]
):
    """One plain process, two ranks under a launcher."""
    way = (REAL | WITH_TWO_WORKERS)[name]
    orders = tmp_path / "orders"
    (orders / "evaluation").mkdir(parents=True)
    if way.before is not None:
        (orders / way.before).touch()
    options = (*ordered(orders), f"data.num_workers={workers}", "observers.evaluation.every=2ep")
    with Job(tmp_path / "run", *options, launcher=launcher, ranks=1 if launcher == "plain" else 2) as job:
        if way.at is None:
            job.wait_for_step(3)
        else:
            answer = orders / way.at
            job.wait_until(answer.exists, way.at)
        way.strike(job, orders)
        struck = time.monotonic()
        ended = job.end(within_s=60)
        ended_s = time.monotonic() - struck
        while job.processes() and time.monotonic() - struck < 60:
            time.sleep(0.02)
        all_s = time.monotonic() - struck
    table.append(f"{name:25} {launcher:12} {workers:7} {ended.code:5} {ended_s:8.1f} {all_s:18.1f}")
    assert ended.code == code_under(launcher, name, way.code), ended.output
    assert "Traceback" not in ended.output or launcher != "plain" or way.code == EXIT_FAILED, ended.output

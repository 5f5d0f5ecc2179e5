"""Runs in forks of one prepared interpreter: half a second each, so that a test can afford to kill hundreds of them.

    ended = train_in_forks(tmp_path / "run", ranks=2, fault=Fault("after_backward", step=7, rank=1))
    assert ended.codes[1] == -signal.SIGKILL

The interpreter is the fork server of `multiprocessing`, a process of its own: pytest has threads, and a fork of it
would not be safe. Ranks meet by a file, no ports; on two nodes, whose ports are all free, as ranks of a launcher do.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.faults import shown
from tests.faults.forked_rank import told_to, train
from tests.faults.nodes import Node
from tests.faults.planted import Fault
from tests.faults.processes import marked_processes

DEADLINE_S = 120.0  # a run takes half a second; on a crowded machine the first one waits for the server
_SERVER = multiprocessing.get_context("forkserver")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WANDB_MODE": "disabled"}
_ENVIRONMENT["LARGEBATCH_FAULT_FORKS"] = _MARK = secrets.token_hex(8)
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        codes: exit code of each rank; -9 for one that SIGKILL has ended.
        said: what each rank printed.
    """

    codes: tuple[int, ...]
    said: tuple[str, ...]

    @property
    def output(self) -> str:
        """What all ranks printed, one after the other."""
        return "".join(f"--- rank {rank} ---\n{text}" for rank, text in enumerate(self.said))


def train_in_forks(
    folder: Path,
    *overrides: str,
    ranks: int = 1,
    fault: Fault | None = None,
    deadline_s: float = DEADLINE_S,
    timeout_s: float = 60.0,
    nodes: Sequence[Node] | None = None,
    killed_at_last: int | None = None,
) -> Ended:
    """Train `RUN` of forked_rank.py in `folder` until all ranks have ended; collectives have `timeout_s`.

    With `nodes` each rank has a node of its own, and they meet at the first one's address. The test fails if a rank has
    not ended after `deadline_s`, which then tells where it was. A rank that cannot end, because it is stopped, is
    `killed_at_last`, when the others have ended.
    """
    shown.note("processes" if nodes is None else "nodes", ranks, overrides)
    options = {"world_size": ranks, "fault": fault, "timeout_s": timeout_s, "nodes": nodes}
    limits = {"deadline_s": deadline_s, "killed_at_last": killed_at_last}
    return call_in_forks(train, (f"run.dir={folder}", *overrides), ranks=ranks, **limits, **options)


def call_in_forks(
    function: Callable[..., None],
    *arguments: Any,
    ranks: int,
    deadline_s: float = DEADLINE_S,
    killed_at_last: int | None = None,
    **options: Any,
) -> Ended:
    """`function(*arguments, rank=..., store=..., **options)` in a fork for each rank, until all have ended.

    The function is one at the top level of a module that the server knows, `store` a path by which ranks can meet. The
    test fails as with `train_in_forks`.
    """
    with tempfile.TemporaryDirectory(prefix="largebatch-faults-") as scratch:
        logs = [Path(scratch) / f"rank_{rank}.log" for rank in range(ranks)]
        options |= {"store": Path(scratch) / "store"}
        processes = [
            _SERVER.Process(
                target=told_to, args=(log, deadline_s - 1, function, *arguments), kwargs={**options, "rank": rank}
            )
            for rank, log in enumerate(logs)
        ]
        is_late = _run_until(time.monotonic() + deadline_s, processes, killed_at_last)
        said = tuple(log.read_text(errors="replace") if log.exists() else "" for log in logs)
    ended = Ended(tuple(process.exitcode for process in processes), said)
    if is_late:
        pytest.fail(f"still running after {deadline_s:g} s:\n{ended.output}")
    return ended


def forked_processes() -> set[int]:
    """Every living process that came of the fork server of this session, the server itself included."""
    return marked_processes(f"LARGEBATCH_FAULT_FORKS={_MARK}")


def _run_until(deadline: float, processes: Sequence[BaseProcess], killed_at_last: int | None) -> bool:
    """Start all and wait for them; whether one had to be killed because the time was over."""
    with _server_environment():
        for process in processes:
            process.start()
    for rank, process in enumerate(processes):
        if rank != killed_at_last:
            process.join(max(0.0, deadline - time.monotonic()))
    if killed_at_last is not None:
        processes[killed_at_last].kill()
        processes[killed_at_last].join()
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    return bool(late)


@contextmanager
def _server_environment() -> Iterator[None]:
    """What the fork server starts with, where it is not yet there, and all forks have."""
    _SERVER.set_forkserver_preload(["tests.faults.warm"])
    hidden = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    former = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ |= _ENVIRONMENT
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        os.environ |= hidden

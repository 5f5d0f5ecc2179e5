"""Runs in forks of one prepared interpreter: half a second each, so that a test can afford to kill hundreds of them.

    ended = train_in_forks(tmp_path / "run", ranks=2, fault=Fault("after_backward", step=7, rank=1))
    assert ended.codes[1] == -signal.SIGKILL

Ranks meet by a file, no ports; on two nodes, whose ports are all free, as ranks of a launcher do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.faults import shown
from tests.faults.forked_rank import told_to, train
from tests.faults.nodes import Node
from tests.faults.planted import Fault
from tests.fork_server import start_fork

DEADLINE_S = 120.0  # a run takes half a second; on a crowded machine the first one waits for the server


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
    port: int | None = None,
    killed_at_last: int | None = None,
) -> Ended:
    """Train `RUN` of forked_rank.py in `folder` until all ranks have ended; collectives have `timeout_s`.

    With `nodes` each rank has a node of its own, and they meet at the first one's address. With a `port` they meet
    there, and collectives behave as those of NCCL. The test fails if a rank has not ended after `deadline_s`, which
    then tells where it was. A rank that cannot end, because it is stopped, is `killed_at_last`, when the others have
    ended.
    """
    shown.note("processes" if nodes is None else "nodes", ranks, overrides)
    options = {"world_size": ranks, "fault": fault, "timeout_s": timeout_s, "nodes": nodes, "port": port}
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
        end = time.monotonic() + deadline_s
        processes = [
            start_fork(told_to, log, deadline_s - 1, function, *arguments, rank=rank, **options)
            for rank, log in enumerate(logs)
        ]
        is_late = _wait(end, processes, killed_at_last)
        said = tuple(log.read_text(errors="replace") if log.exists() else "" for log in logs)
    ended = Ended(tuple(process.exitcode for process in processes), said)
    if is_late:
        pytest.fail(f"still running after {deadline_s:g} s:\n{ended.output}")
    return ended


def _wait(deadline: float, processes: Sequence[BaseProcess], killed_at_last: int | None) -> bool:
    """Until all have ended; whether one had to be killed because the time was over."""
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

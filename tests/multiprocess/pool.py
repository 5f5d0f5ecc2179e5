"""Rank processes for tests: started once per test session and lent to a test as a world of any size.

    def sum_of_ranks(value):                       # at the top level of the test file
        tensor = torch.tensor(value + dist.get_rank())
        dist.all_reduce(tensor)
        return tensor

    def test_sum(ranks):
        assert ranks(2).run(sum_of_ranks, 10.0) == [21.0, 21.0]

The processes are forks of one that has imported torch, see `tests/fork_server.py`, and shared: the worlds of 1, 2, ...
ranks are made of the first 1, 2, ... of them. Only the process group is made anew, when the world size changes or a
call failed: gloo by a file, no ports. A world of one rank gets no process group, but the same environment (RANK=0,
WORLD_SIZE=1).

Each call begins with the process as it was at its start (current folder, environment, signal handlers, ...), the
environment that a launcher would give to that rank, torch's default dtype, seed 0 and one thread, and without
accelerate's singleton; imported modules stay. Messages are plain pickles through a pipe: no shared
memory, no file descriptors. A rank may start processes of its own (data loader workers).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.faults import shown
from tests.fork_server import start_fork
from tests.multiprocess.rank import serve

START_DEADLINE_S = 180.0  # on a busy machine
GRACE_S = 10.0  # for the others once a rank has failed: their collectives break at once, so this is for slow code


class RankError(Exception):
    """At least one rank of a call raised, died or did not answer; the first to fail is told first.

    `failures` maps each such rank to its traceback, or to what is known of its end.
    """

    def __init__(self, call: str, world_size: int, failures: dict[int, str]) -> None:
        parts = [f"{call} failed on {len(failures)} of {world_size} ranks, in this order:"]
        parts += [f"--- rank {rank} ---\n{text.rstrip()}" for rank, text in failures.items()]
        super().__init__("\n".join(parts))
        self.failures = failures


@dataclass(frozen=True)
class Reply:
    """A rank's answer: the pickled result, or a traceback; and whether its process group can be used again."""

    result: bytes = b""
    error: str = ""
    group_usable: bool = False


@dataclass(frozen=True)
class Rank:
    """A rank process, the pipe to it and the file that its output goes to."""

    process: BaseProcess
    connection: Connection
    log: Path

    @classmethod
    def start(cls, number: int, folder: Path) -> Rank:
        """Start a rank process. Its first reply says that it is ready."""
        ours, theirs = Pipe()
        log = folder / f"rank_{number}.log"
        log.write_bytes(b"")
        process = start_fork(serve, theirs, log)
        theirs.close()
        return cls(process, ours, log)

    @property
    def has_ended(self) -> bool:
        """Whether there is no such process any more."""
        return self.process.exitcode is not None

    def receive(self) -> Reply:
        """The reply that waits in the pipe, or what became of the process."""
        try:
            return Reply(**pickle.loads(self.connection.recv_bytes()))
        except (EOFError, ConnectionError):
            self.process.join(10)
            code = self.process.exitcode
            if code is None:
                return Reply(error=f"The process has closed its pipe, but lives. The end of its output:\n{self.tail()}")
            end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
            return Reply(error=f"The process {end}. The end of its output:\n{self.tail()}")

    def dump_stacks(self) -> str:
        """Where each thread of a rank that does not answer is, at the end of its output."""
        written = self.log.stat().st_size
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGUSR2)
        deadline = time.monotonic() + 2.0
        while self.log.stat().st_size == written and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.tail()

    def tail(self, characters: int = 6000) -> str:
        """The end of the rank's output."""
        return self.log.read_text(errors="replace")[-characters:]

    def kill(self) -> None:
        """End the process and those that it has started."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(10)
        self.connection.close()


@dataclass
class RankProcesses:
    """The rank processes of a test session: started when needed, killed when a call leaves one of them hanging."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="largebatch-ranks-")))
    ranks: list[Rank] = field(default_factory=list)
    _group_size: int = 0  # ranks of the process group that stands ready; 0: none does
    _group_number: int = 0

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def close(self) -> None:
        """End all processes and remove the temporary folder."""
        atexit.unregister(self.close)
        self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, reference: dict[str, Any], world_size: int, arguments: bytes, deadline: float) -> list[Any]:
        """Run one function in ranks 0 to `world_size - 1`; see `RankPool.run`."""
        try:
            ranks = self._started(world_size)
            task = {**reference, "arguments": arguments, **self._group(world_size)}
            for number, rank in enumerate(ranks):
                rank.connection.send_bytes(pickle.dumps({**task, "rank": number}))
            replies = self._collect(ranks, deadline)
        except BaseException:  # Ctrl-C, too: the pipes no longer stand at the beginning of a call
            self._kill()
            raise
        if not all(reply.group_usable for reply in replies.values()):
            self._group_size = 0
        if failures := {number: reply.error for number, reply in replies.items() if reply.error}:
            raise RankError(f"{reference['module']}:{reference['qualname']}", world_size, failures)
        return [pickle.loads(replies[number].result) for number in range(world_size)]

    def _started(self, world_size: int) -> Sequence[Rank]:
        if any(rank.has_ended for rank in self.ranks):  # killed from outside, between two calls
            self._kill()
        if new := range(len(self.ranks), world_size):
            self.ranks += [Rank.start(number, self.folder) for number in new]
            replies = self._collect(self.ranks[new.start :], START_DEADLINE_S)
            if failures := {new.start + number: reply.error for number, reply in replies.items() if reply.error}:
                raise RankError("The start of the rank processes", world_size, failures)
        return self.ranks[:world_size]

    def _group(self, world_size: int) -> dict[str, Any]:
        is_new = self._group_size != world_size
        self._group_size = world_size
        self._group_number += is_new
        group_file = str(self.folder / f"group_{self._group_number}")
        return {"world_size": world_size, "new_group": is_new, "group_file": group_file}

    def _collect(self, ranks: Sequence[Rank], deadline: float) -> dict[int, Reply]:
        """The reply of every rank, in the order in which they came; kills all ranks if one died or gave none."""
        pending: dict[Any, int] = {rank.connection: number for number, rank in enumerate(ranks)}
        replies: dict[int, Reply] = {}
        end, limit = time.monotonic() + deadline, f"{deadline:g} s"
        while pending and (left := end - time.monotonic()) > 0:
            for connection in wait(list(pending), left):
                number = pending.pop(connection)
                replies[number] = ranks[number].receive()
                if replies[number].error and time.monotonic() + GRACE_S < end:
                    end, limit = time.monotonic() + GRACE_S, f"{GRACE_S:g} s after the failure of rank {number}"
        for number in pending.values():
            text = f"No answer within {limit}: killed. The end of its output, with its stacks:"
            replies[number] = Reply(error=f"{text}\n{ranks[number].dump_stacks()}")
        if pending or any(rank.has_ended for rank in ranks):
            self._kill()
        return replies

    def _kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
        self.ranks, self._group_size = [], 0


@dataclass(frozen=True)
class RankPool:
    """A world of `world_size` ranks that runs functions."""

    processes: RankProcesses
    world_size: int

    def run(
        self, function: Callable[..., Any] | str, /, *args: Any, deadline: float = 120.0, **kwargs: Any
    ) -> list[Any]:
        """`function(*args, **kwargs)` in every rank; the results in rank order.

        Args:
            function: a function at the top level of a module, or its name as "module:qualname".
            *args: arguments, the same for every rank; a rank finds its number in `RANK`.
            deadline: seconds after which the ranks are killed and the call has failed; the start of the processes does
                not count.
            **kwargs: keyword arguments, the same for every rank.

        Raises:
            RankError: if any rank raised, died or did not answer. The next call finds the pool in order.
        """
        shown.note("processes", self.world_size)
        return self.processes.call(_reference(function), self.world_size, pickle.dumps((args, kwargs)), deadline)


def _reference(function: Callable[..., Any] | str) -> dict[str, Any]:
    """Module, file and qualified name, by which a rank finds the function."""
    if isinstance(function, str):
        module, _, qualname = function.partition(":")
        if not (module and qualname):
            raise ValueError(f"{function!r} does not name a function: write 'module:qualname'.")
        return {"module": module, "file": None, "qualname": qualname}
    module, qualname = function.__module__, function.__qualname__
    if "<" in qualname:
        raise ValueError(f"{qualname} is local, so no rank can find it: move it to the top of {module}.")
    return {"module": module, "file": getattr(sys.modules.get(module), "__file__", None), "qualname": qualname}

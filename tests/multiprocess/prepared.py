"""The interpreter that rank processes are forked from: it has imported torch, once, and so have they.

An import of torch costs seconds, with what DDP and optimizers import when first used; a fork costs milliseconds. pytest
itself is no process to fork: it has threads. All ranks have one hash seed, unlike those of a launcher.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_DEADLINE_S = 180.0  # `import torch`, on a busy machine
LAUNCHER_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_", "TORCH_DISTRIBUTED_", "FSDP_")  # from whatever started the tests
# What calls would import otherwise, each rank for itself. Nothing that starts a thread, which no fork would have.
PREPARED = ("torch.distributed.fsdp", "torch._dynamo", "pytest", "largebatch.cli.train", "tests.unit.composing")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PreparedInterpreter:
    """The process of `rank.py`, and the socket by which it is asked for forks and for how they ended."""

    process: subprocess.Popen[bytes]
    requests: socket.socket
    log: Path

    @classmethod
    def start(cls, folder: Path, imports: Sequence[str]) -> PreparedInterpreter:
        """Start it, and wait until it has imported torch and `imports`."""
        ours, theirs = socket.socketpair()
        log = folder / "prepared_interpreter.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("rank.py")), str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the tests alone
            )
        theirs.close()
        ours.settimeout(START_DEADLINE_S)
        interpreter = cls(process, ours, log)
        threads = interpreter._ask({"path": sys.path, "imports": ["torch.distributed", *imports]})
        assert threads == 1, "a fork would have none of the others, and may wait for them"
        return interpreter

    @property
    def has_ended(self) -> bool:
        """Whether it was killed from outside."""
        return self.process.poll() is not None

    def fork(self, connection: int, log: Path) -> int:
        """Fork a rank that answers at the other end of the descriptor `connection`; its process id."""
        return self._ask({"log": str(log)}, connection)

    def exit_code(self, pid: int, *, within_s: float = 0.0) -> int | None:
        """How a rank has ended, negative for a signal; None as long as it has not."""
        end = time.monotonic() + within_s
        while (code := self._ask({"pid": pid})) is None and time.monotonic() < end:
            time.sleep(0.02)
        return code

    def close(self) -> None:
        """End it. The kernel ends its ranks, too, where there is Linux."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.requests.close()

    def _ask(self, request: dict[str, Any], *descriptors: int) -> Any:
        try:
            socket.send_fds(self.requests, [pickle.dumps(request)], descriptors)
            answer = self.requests.recv(4096)
        except ConnectionError:
            answer = b""
        if not answer:
            raise RuntimeError(f"The interpreter that ranks are forked from has ended:\n{self.log.read_text()}")
        return pickle.loads(answer)

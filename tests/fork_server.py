"""The fork server of `multiprocessing`, by which tests get processes that have imported everything: milliseconds each.

An import of torch costs seconds, with what DDP and optimizers import when first used. pytest itself is no process to
fork: it has threads. Each process of pytest has one server, for the ranks of `multiprocess/pool.py` as for the runs of
`faults/forks.py`; it imports `tests.warm` when the first fork is asked for. All forks have one hash seed, unlike the
ranks of a launcher.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.faults.processes import marked_processes
from tests.launcher import LAUNCHER, LAUNCHER_PREFIXES

ROOT = Path(__file__).resolve().parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.warm"])
_MARK = secrets.token_hex(8)
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "LARGEBATCH_FORKS": _MARK}
if sys.platform == "linux":
    _ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name need not resolve


def start_fork(function: Callable[..., None], *arguments: Any, **options: Any) -> BaseProcess:
    """Call a function of the top level of a module in a process of its own, which nobody has launched."""
    process = _SERVER.Process(target=_as_if_started, args=(function, *arguments), kwargs=options)
    with _server_environment():
        process.start()
    return process


def forked_processes() -> set[int]:
    """Every living process that came of the fork server of this session, the server itself included."""
    return marked_processes(f"LARGEBATCH_FORKS={_MARK}")


def _as_if_started(function: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """Loading processes are made as in a process that nobody forked."""
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup before pytest is for pytest
    function(*arguments, **options)


@contextmanager
def _server_environment() -> Iterator[None]:
    """What the fork server starts with, where it is not yet there, and all forks have."""
    former = dict(os.environ)
    for name in former:
        if name in LAUNCHER or name.startswith(LAUNCHER_PREFIXES):
            del os.environ[name]
    os.environ |= _ENVIRONMENT
    try:
        yield
    finally:
        for name in os.environ.keys() - former.keys():
            del os.environ[name]
        os.environ |= former

"""A function on several processes of this machine, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from largebatch.distributed.signals import Stopped, end_with_launcher, heeded_signals, stop_at_once
from largebatch.records.credentials import redact_screens


def on_local_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(*arguments)` on `world_size` new processes over gloo; returns the value of rank 0.

    Args:
        world_size: processes to start.
        function: defined in a module, for the processes to import; it joins the job as a program under torchrun does.
        arguments: picklable values.

    Raises:
        ChildFailedError: if a process fails; its own message was printed.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    threads = str(max((os.cpu_count() or 1) // world_size, 1))
    # No GPU: NCCL refuses several ranks on one.
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    with _environment(**variables), _own_signals():
        return elastic_launch(launch, _as_rank)(function, *arguments)[0]


def _as_rank(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in a new process, which ends with its parent."""
    end_with_launcher()
    stop_at_once()
    redact_screens()
    return function(*arguments)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore this process's signal handlers at the end; until then a stop signal ends the ranks, then this process."""
    former = {number: signal.getsignal(number) for number in heeded_signals()}
    try:
        yield
    except SignalException as stopped:
        raise Stopped(signal.Signals(stopped.sigval).name) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in former.items():
                signal.signal(number, handler)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables for processes that are started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

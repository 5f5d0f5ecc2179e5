"""A function on several processes of this machine, as torchrun would start them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def on_local_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returns on rank 0 of `world_size` new processes, over gloo.

    Args:
        world_size: processes to start.
        function: of a module, so that the processes find it; it joins the job itself, as any program under torchrun.
        arguments: that survive pickling.

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
    with _environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads)):
        return elastic_launch(launch, function)(*arguments)[0]


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

"""What a fork of the prepared interpreter does: one rank of `largebatch train`, and then it is gone."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import largebatch.cli.train
import largebatch.records.trackers
from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.cli.process.leaving import EXIT_FAILED, EXIT_UNSAVED, EXIT_WRONG_INPUT, leave, report_interrupted
from largebatch.data import MicroBatchLoader
from largebatch.distributed.process_group import leave_process_group
from largebatch.distributed.rendezvous import LauncherError
from largebatch.distributed.signals import stop_at_once
from largebatch.records.checkpoint import CheckpointError, NotSavedError
from largebatch.run.config.reading import ConfigError
from tests.faults.nodes import INTERFACE, Node
from tests.faults.own_data import NoisyPairs
from tests.faults.planted import Fault, behave_as_nccl, bound_collectives
from tests.unit.composing import compose_run

# 120 samples in batches of 24: an epoch is 5 steps, the run 3 1/5 epochs; augmented, in micro-batches of 8.
RUN = (
    "data=digits", "data.limit=120", "data.augment.crop_padding=1", "model=mlp", "model.hidden=[8]", "batch.total=24",
    "batch.max_micro=8", "length=16steps", "schedule.warmup=5steps", "logger=none", "observers.progress=false",
    "observers.metrics.every=4", "observers.evaluation.every=4steps", "observers.checkpoint.every=3steps",
    "observers.ledger.enabled=true", "observers.ledger.parameters_every=1", "observers.replicas.every=4",
)  # fmt: skip


def told_to(log: Path, deadline_s: float, function: Callable[..., None], /, *arguments: Any, **options: Any) -> None:
    """Call a function in this process; what it says goes to `log`, and after the deadline where it is."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(deadline_s, file=output)  # a rank that hangs says where
    function(*arguments, **options)


def train(
    overrides: Sequence[str],
    *,
    rank: int,
    world_size: int,
    store: Path,
    fault: Fault | None,
    timeout_s: float,
    nodes: Sequence[Node] | None,
    port: int | None = None,
) -> None:
    """Train as one rank of a job and leave with the exit code of the command.

    With a `port` the ranks meet at the store that is there, as at that of a torchrun agent. They give signs of life
    five times a second, and `behave_as_nccl`.
    """
    os.environ["WANDB_MODE"] = "disabled"
    if fault is not None and fault.rank == rank:
        fault.plant()
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        if port is not None:
            os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
            overrides = (*overrides, f"launcher.collective_timeout_s={timeout_s:g}", "launcher.heartbeat_s=0.2")
            behave_as_nccl()
        elif nodes is None:
            _meet_by_file(store, rank, world_size, timeout_s=600)
            bound_collectives(timeout_s, from_step=1 if fault is None else fault.step)
        else:
            nodes[rank].enter()
            os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": nodes[0].address}
            os.environ |= {"GLOO_SOCKET_IFNAME": INTERFACE}
            overrides = (*overrides, f"launcher.collective_timeout_s={timeout_s:g}")
    stop_at_once()
    leave(_exit_code(overrides))


def join_and_leave(times: int, *, rank: int, store: Path) -> None:
    """Be a rank of a job of two that trains a little, one job after the other."""
    for number in range(times):
        _meet_by_file(store.with_name(f"store_{number}"), rank, 2, timeout_s=60)
        model = DistributedDataParallel(nn.Linear(4, 4))
        model.register_comm_hook(None, lambda state, bucket: allreduce_hook(None, bucket))
        for _ in range(3):
            model(torch.randn(2, 4)).sum().backward()
            values = torch.zeros(4, dtype=torch.float64)
            dist.all_reduce(values, async_op=True).wait()
            del values
        leave_process_group()
    print(f"left {times} jobs", flush=True)


def begin_to_load(*, rank: int, store: Path) -> None:
    """Ask two loading processes for a batch and leave them in the middle of an epoch."""
    data = NoisyPairs(120)
    plan = BatchPlan.solve(global_batch_size=12, world_size=1)
    batches = MicroBatchLoader(data, SampleOrder(120, 0), plan, 0, num_workers=2).micro_batches(0, 1000)
    next(batches)
    sys.modules["__kept__"] = batches  # type: ignore[assignment]  # as what a traceback or a cycle holds


def _meet_by_file(store: Path, rank: int, world_size: int, timeout_s: float) -> None:
    limit = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=limit)


def _exit_code(overrides: Sequence[str]) -> int:
    """As the command line ends, without its start: composing by Hydra costs ten times the run."""
    try:
        return largebatch.cli.train.run(compose_run(*RUN, *overrides), list(overrides))
    except (ConfigError, LauncherError, CheckpointError) as error:
        print(f"largebatch: {error}")
        return EXIT_UNSAVED if isinstance(error, NotSavedError) else EXIT_WRONG_INPUT
    except KeyboardInterrupt as error:
        return report_interrupted(error)
    except (Exception, SystemExit):
        traceback.print_exc()
        return EXIT_FAILED


def warm_up() -> None:
    """Train once and come back to it, so that forks find everything imported that a run imports on its way."""
    with tempfile.TemporaryDirectory() as folder:
        for resume in ("none", "auto"):
            assert _exit_code([f"run.dir={folder}/run", f"resume={resume}"]) == 0

"""Faults for a run in a process of its own: where it is hit, and what hits it.

Nothing in the product knows of them. In the loop they come through the hooks that torch gives to everybody and around
two public functions; in the checkpoint they come through audit events of the interpreter, which it raises before each
call that touches the disk. The process does not outlive its run, so nothing is put back.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

import largebatch.training.loop
from largebatch.distributed import heartbeat
from largebatch.training.loop import Observer, Run
from tests.faults.nodes import INTERFACE

# Inside optimizer step `step`, in the order in which a step passes them.
STEP_POINTS = ("before_step", "after_forward", "after_backward", "before_update", "after_update", "log_mid")
# Inside the checkpoint of step `step`, in the order of its writing.
CHECKPOINT_POINTS = (
    "checkpoint_begin",
    "checkpoint_mid_file",
    "checkpoint_before_manifest",
    "checkpoint_before_rename",
    "checkpoint_after_rename",
)
POINTS = (*STEP_POINTS, "evaluation_mid", *CHECKPOINT_POINTS)


class PlantedError(Exception):
    """What a planted fault raises."""


@dataclass(frozen=True)
class Fault:
    """One fault of one rank.

    Attributes:
        point: where, of `POINTS`.
        step: the optimizer step, from 1, in which or after which it comes.
        action: `kill` by SIGKILL, `raise` an error, `leave` with exit code 0, `exit` by sys.exit(0), let `folder`
            `vanish`, `limit` the size of files, `hold` the interpreter for `seconds`, `cut` the link to the other node,
            `sleep`, `order ...` something of the data in `folder`, `kill_worker`, or signals by their names.
        rank: whom it hits.
        micro_batch: in `after_forward` and `after_backward`, of the rank's in this step, from 0.
        folder, seconds: of the actions that need them.
    """

    point: str
    step: int
    action: str = "kill"
    rank: int = 0
    micro_batch: int = 0
    folder: Path | None = None
    seconds: int = 0

    def plant(self) -> None:
        """Make it come, once, in the run that this process is about to start."""
        assert self.point in POINTS, self.point
        if self.point in CHECKPOINT_POINTS:
            sys.addaudithook(_CheckpointWatch(self))
            return
        original = largebatch.training.loop.train

        def train(run: Run) -> str:
            _plant_in(run, self)
            return original(run)

        largebatch.training.loop.train = train

    def strike(self) -> None:
        """Let it happen now."""
        if self.action == "raise":
            raise PlantedError(f"planted: {self.point} of step {self.step}")
        if self.action == "leave":
            os._exit(0)
        if self.action == "exit":
            sys.exit(0)
        if self.action == "vanish":
            assert self.folder is not None
            shutil.rmtree(self.folder)
        elif self.action.startswith("order "):
            assert self.folder is not None
            (self.folder / self.action.removeprefix("order ")).touch()
        elif self.action == "sleep":
            threading.Event().wait()
        elif self.action == "kill_worker":
            multiprocessing.active_children()[-1].kill()
        elif self.action == "cut":
            subprocess.run(["ip", "link", "set", "dev", INTERFACE, "down"], check=True)
        elif self.action == "limit":  # a disk that has room for what a rank prints, and not for weights
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
        elif self.action == "hold":
            ctypes.PyDLL(None).sleep(self.seconds)  # a PyDLL keeps the GIL: no thread of this process runs
        else:
            self._signal()

    def _signal(self) -> None:
        for name in ("SIGKILL" if self.action == "kill" else self.action).split():
            os.kill(os.getpid(), getattr(signal, name))


def behave_as_nccl() -> None:
    """Let a host wait for ever where a rank is lost, without an error, and where a group is closed before all are done.

    Collectives of NCCL run on the GPU: the host waits in the driver until torch's watchdog ends the process.
    """
    take_step = largebatch.training.loop.take_step

    def take_step_or_wait(run: Run, step: Any) -> Any:
        try:
            return take_step(run, step)
        except RuntimeError as error:
            if "gloo" in str(error) or "pair closure" in str(error):
                threading.Event().wait()
            raise

    def wait_for_all(*_: Any) -> None:
        print("the group is being closed", flush=True)
        threading.Event().wait()

    largebatch.training.loop.take_step = take_step_or_wait
    dist.destroy_process_group = wait_for_all
    heartbeat.LAST_WORDS_S = 0.5


def bound_collectives(limit_s: float, *, from_step: int) -> None:
    """Have collectives fail after `limit_s` from a step on; before it a crowded machine may take its time."""
    take_step = largebatch.training.loop.take_step

    def take_step_in_time(run: Run, step: Any) -> Any:
        if run.steps.number >= from_step:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=limit_s))
        return take_step(run, step)

    largebatch.training.loop.take_step = take_step_in_time


def _plant_in(run: Run, fault: Fault) -> None:
    """Hooks that strike when the run is at the fault's point; `steps.number` is the step that is being taken."""
    calls = [0]

    def in_step(*_: Any) -> None:
        if run.steps.number == fault.step and run.module.training:
            calls[0] += 1
            if calls[0] == fault.micro_batch + 1:
                fault.strike()

    def in_evaluation(*_: Any) -> None:
        if run.steps.number == fault.step and not run.module.training:
            fault.strike()

    if fault.point == "before_step":
        largebatch.training.loop.take_step = _before(largebatch.training.loop.take_step, run, fault)
    elif fault.point == "after_forward":
        run.module.register_forward_hook(in_step)
    elif fault.point == "after_backward":
        run.runtime.backward = _followed(run.runtime.backward, in_step)  # type: ignore[method-assign]
    elif fault.point == "before_update":
        run.optimizer.register_step_pre_hook(in_step)
    elif fault.point == "after_update":
        run.optimizer.register_step_post_hook(in_step)
    elif fault.point == "evaluation_mid":
        run.module.register_forward_hook(in_evaluation)
    else:
        run.observers = [TornRow(fault), *run.observers]


def _before(take_step: Callable[..., Any], run: Run, fault: Fault) -> Callable[..., Any]:
    def step(*arguments: Any) -> Any:
        if run.steps.number == fault.step:
            fault.strike()
        return take_step(*arguments)

    return step


def _followed(function: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        then()
        return result

    return run


@dataclass
class TornRow(Observer):
    """Strikes while a row is written: half of it is on the disk."""

    fault: Fault

    def after_step(self, run: Run, report: Any) -> None:
        """Write half a row into each record of the run, in the step of the fault."""
        if report.step != self.fault.step:
            return
        (lock,) = (Path(os.readlink(link)) for link in Path("/proc/self/fd").iterdir() if _target(link) == ".lock")
        for record in ("ledger.jsonl", "metrics.jsonl"):
            with (lock.parent / record).open("ab") as file:
                file.write(b'{"step":%d,"samples_se' % report.step)
        self.fault.strike()


def _target(link: Path) -> str:
    try:
        return Path(os.readlink(link)).name
    except OSError:  # closed meanwhile
        return ""


class _CheckpointWatch:
    """An audit hook that follows how the checkpoint of one step is written."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._prefix = f".tmp-{fault.step}-"
        self._is_renamed = self._has_struck = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._has_struck or event not in ("open", "os.mkdir", "os.rename") or isinstance(arguments[0], int):
            return
        path = Path(os.fsdecode(arguments[0]))
        if self._is_here(event, path, arguments):
            self._has_struck = True
            if self._fault.point == "checkpoint_mid_file":
                os.truncate(path, path.stat().st_size // 2)
            self._fault.strike()
        if event == "os.rename" and path.name.startswith(self._prefix):
            self._is_renamed = True

    def _is_here(self, event: str, path: Path, arguments: tuple[Any, ...]) -> bool:
        point = self._fault.point
        if point == "checkpoint_after_rename":
            return self._is_renamed and event == "open"  # to force the new name to the disk
        if event != "open":
            return path.name.startswith(self._prefix) and (point, event) in (
                ("checkpoint_begin", "os.mkdir"),
                ("checkpoint_before_rename", "os.rename"),
            )
        if not path.parent.name.startswith(self._prefix):
            return False
        if point == "checkpoint_mid_file":  # it is opened to be forced to the disk, so all of it was written
            return path.name == "model.safetensors"
        return point == "checkpoint_before_manifest" and path.name == "MANIFEST.json" and arguments[2] & os.O_CREAT

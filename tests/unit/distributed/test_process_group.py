"""The group of a job: opened with a device, left in two ways, bounded in time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from largebatch.distributed import process_group
from largebatch.distributed.membership import TimeLimits, require_same_job
from largebatch.distributed.process_group import gpu_address, open_process_group, own_device
from largebatch.distributed.rendezvous import LauncherError
from largebatch.distributed.runtime import Runtime

ALONE = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture
def alone(no_launcher: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of one rank, which has a process group all the same."""
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.fault(4)
@pytest.mark.usefixtures("alone")
def test_a_program_of_ones_own_that_raises_prints_its_error_and_ends_without_closing_the_group():
    """As NCCL's, the close waits for other ranks; so would the end of the interpreter."""
    program = """
import atexit, threading
import torch.distributed as dist
from largebatch.distributed.runtime import Runtime

atexit.register(print, "the interpreter is finalized")
dist.destroy_process_group = lambda *_: (print("the group is being closed", flush=True), threading.Event().wait())
with Runtime.open() as runtime:
    assert dist.is_initialized()
    raise ValueError("planted")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("ValueError: planted")
    assert ended.stdout == ""


def test_an_interrupt_that_nothing_catches_has_the_exit_code_of_a_shell(monkeypatch: pytest.MonkeyPatch):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(process_group, "_ABANDONED", ["a group"])
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    process_group.abandon_process_group()
    for error in (KeyboardInterrupt(), OSError()):
        sys.excepthook(type(error), error, None)
    assert codes == [130, 1]


@pytest.mark.usefixtures("alone")
def test_after_an_error_that_is_caught_another_job_can_be_joined(monkeypatch: pytest.MonkeyPatch):
    hook = sys.excepthook
    for _ in range(2):
        with pytest.raises(ValueError, match="planted"), Runtime.open() as runtime:
            raise ValueError("planted")
        assert dist.is_initialized(), "not closed while an error is on its way"
    runtime = Runtime.open()
    runtime.close()
    assert not dist.is_initialized()
    monkeypatch.setattr(sys, "excepthook", hook)


@pytest.mark.usefixtures("alone")
def test_a_close_in_a_finally_clause_does_not_wait_for_other_ranks(monkeypatch: pytest.MonkeyPatch):
    def close_in_finally() -> None:
        runtime = Runtime.open()
        try:
            raise ValueError("planted")
        finally:
            runtime.close()

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ValueError, match="planted"):
        close_in_finally()
    assert dist.is_initialized()
    process_group.end_abandoned_group()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("alone")
def test_an_abandoned_group_that_does_not_end_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(process_group, "ABORT_S", 0.1)
    with pytest.raises(ValueError, match="planted"), Runtime.open():
        raise ValueError("planted")
    destroy, released = dist.destroy_process_group, threading.Event()
    monkeypatch.setattr(dist, "destroy_process_group", lambda: released.wait(20))
    with pytest.raises(LauncherError, match=r"did not close within 0\.1 s"):
        Runtime.open()
    released.set()
    destroy()


@pytest.mark.usefixtures("alone")
def test_collectives_have_long_at_the_start_and_where_one_is_waited_for_and_less_in_the_steps():
    def limit_s() -> float:
        backend: Any = dist.group.WORLD._get_backend(torch.device("cpu"))
        return backend.options._timeout.total_seconds()

    with Runtime.open(limits=TimeLimits(start_s=900, collective_s=60)) as runtime:
        assert limit_s() == 900
        runtime.membership.started()
        assert limit_s() == 60
        with runtime.membership.patience():
            assert limit_s() == 900
        assert limit_s() == 60
    assert TimeLimits(start_s=60, collective_s=900).start_s == 900


def test_nccl_is_told_the_device_so_that_there_is_one_communicator_from_the_start(monkeypatch: pytest.MonkeyPatch):
    opened: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: opened.update(current=device))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="A", uuid="u"))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: opened.update(how, backend=backend))
    environ = ALONE | {"LOCAL_RANK": "3", "TORCH_NCCL_TRACE_BUFFER_SIZE": "50"}
    open_process_group(environ, own_device(environ), timeout_s=60, rendezvous_timeout_s=1)
    mine = torch.device("cuda", 1)
    assert opened == {"backend": "nccl", "device_id": mine, "current": mine, "timeout": timedelta(seconds=60)}
    assert environ["RDMAV_FORK_SAFE"] == environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert "TORCH_FR_BUFFER_SIZE" not in environ, "the user's own size has an older name"


def test_two_slices_of_a_gpu_have_one_address(monkeypatch: pytest.MonkeyPatch):
    place = {"name": "A100 MIG 3g.20gb", "pci_domain_id": 0, "pci_bus_id": 59, "pci_device_id": 0}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=str(device), **place))
    first, second = (gpu_address(torch.device("cuda", index)) for index in (0, 1))
    assert first == second
    assert first.startswith("A100 MIG 3g.20gb 0000:3b:00 ")


@pytest.mark.parametrize(
    ("seen", "chosen", "told"),
    [
        (2, "cuda:1", None),
        (2, "cuda", None),
        (1, "cuda:1", "The launcher started 2 processes, but accelerate sees 1: every rank would train alone"),
        (2, "cpu", "This rank has cuda:1, but accelerate has chosen cpu: a variable such as ACCELERATE_USE_CPU"),
        (
            2,
            "cuda:0",
            "This rank has cuda:1, but accelerate has chosen cuda:0: a variable such as ACCEL",
        ),
    ],
)
def test_a_device_or_a_job_that_accelerates_variables_have_changed_is_refused(seen: int, chosen: str, told: str | None):
    refused = contextlib.nullcontext() if told is None else pytest.raises(LauncherError, match=f"^{told}")
    with refused:
        require_same_job({"WORLD_SIZE": "2"}, seen, torch.device("cuda", 1), torch.device(chosen))
    require_same_job({}, 1, torch.device("cpu"), torch.device("cpu:0"))

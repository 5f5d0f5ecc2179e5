"""Every check finds the defect that it looks for, names a remedy, and leaves nothing behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from largebatch.cli import doctor
from largebatch.run.doctor import Diagnosis, examination, examine, job, machine, reach, software

MIB = 1 << 20


def only(found: Iterable[Diagnosis], subject: str) -> Diagnosis:
    (one,) = [each for each in found if each.subject == subject]
    return one


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def test_a_finding_that_is_wrong_has_a_remedy():
    with pytest.raises(ValueError, match="disk: problem"):
        Diagnosis("disk", "problem", "full")
    with pytest.raises(ValueError, match="disk: ok"):
        Diagnosis("disk", "ok", "fine", "buy one")


@pytest.mark.parametrize(
    ("wanted", "state", "told"),
    [
        ("numpy>=1", "ok", ">=1"),
        ("numpy>=99", "problem", "needs >=99"),
        ("no-such-package>=1", "problem", "not installed"),
    ],
)
def test_versions_are_held_against_the_range(wanted: str, state: str, told: str):
    found = software.of_package(Requirement(wanted))
    assert (found.state, told in found.found) == (state, True)
    assert (f'pip install "{wanted}"' == found.remedy) == (state == "problem")


@pytest.mark.bad_input("plots without matplotlib")
def test_every_direct_dependency_is_looked_at():
    assert {"torch", "accelerate", "hydra-core", "wandb", "safetensors"} <= {one.subject for one in software.versions()}


def test_a_missing_backend_and_compiler_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = list(software.backends())
    assert only(found, "backends").state == "problem"
    assert only(found, "compiler").state == "note"


def test_a_driver_that_torch_does_not_see_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (found,) = software.devices()
    assert found.state == "problem"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (found,) = software.devices()
    assert found.state == "note"


@pytest.mark.fault(58, "too many threads", "told with the number that fits")
def test_more_threads_than_cores_are_told_with_the_number_that_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    (found,) = machine.cores({"LOCAL_WORLD_SIZE": "4"})
    assert (found.state, found.remedy) == ("note", "export OMP_NUM_THREADS=2")
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    (found,) = machine.cores({"LOCAL_WORLD_SIZE": "4"})
    assert found.state == "ok"


@pytest.mark.bad_input("too many loading processes, or too little shared memory")
def test_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = shutil.disk_usage(tmp_path)._replace(total=64 * MIB, used=0, free=64 * MIB)  # what docker gives
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (found,) = machine.shared_memory(tmp_path)
    assert found.state == "note"
    assert "--shm-size" in found.remedy
    (found,) = machine.shared_memory(tmp_path / "absent")
    assert found.state == "note"


def test_a_disk_that_works_is_left_as_it_was(tmp_path: Path):
    found = list(machine.disk(tmp_path / "runs" / "new"))
    assert only(found, "writing").state == "ok"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["os.fsync", "os.rename", "fcntl.flock"])
def test_a_disk_that_refuses_is_a_problem_and_left_as_it_was(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, refuse)
    found = only(machine.disk(tmp_path), "writing")
    assert (found.state, "ENOSPC" in found.found, "run.root" in found.remedy) == ("problem", True, True)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_a_problem(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    assert only(machine.disk(tmp_path / "runs" / "a"), "disk").state == "problem"


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 4096))
    (found,) = machine.open_files()
    assert (found.state, found.remedy) == ("note", "ulimit -n 4096")


def test_an_environment_that_came_through_in_part_is_a_problem_with_its_remedy():
    (found,) = job.launcher({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"})
    assert found.state == "problem"
    assert "RANK is not" in found.found
    assert found.remedy == "Start with torchrun or accelerate launch, or unset it."
    assert only(job.launcher({"SLURM_JOB_ID": "7"}), "Slurm").state == "note"


@pytest.mark.fault(54, "port taken", "told with the remedy")
@pytest.mark.bad_input("a port that is none, or taken")
def test_a_port_that_is_taken_is_a_problem_only_where_rank_0_opens_it(held_port: int):
    environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held_port), "RANK": "0"}
    assert only(job.ports(environ), "MASTER_PORT").state == "problem"
    under_torchrun = environ | {"TORCHELASTIC_RUN_ID": "none"}  # its agent holds the port: that is as it should be
    assert "MASTER_PORT" not in {one.subject for one in job.ports(under_torchrun)}
    assert "MASTER_PORT" not in {one.subject for one in job.ports(environ | {"RANK": "1"})}


def test_an_address_that_nobody_knows_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def unknown(*arguments: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert only(job.ports({"MASTER_ADDR": "node-0"}), "MASTER_ADDR").state == "problem"


def test_two_processes_meet():
    (found,) = job.meeting()
    assert found.state == "ok", found


def test_processes_that_cannot_meet_are_told_with_their_exit_codes(monkeypatch: pytest.MonkeyPatch):
    """Forked, since it is here for what gloo says: spawned ones are in the test above."""
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface")
    (found,) = job.meeting()
    assert found.state == "problem"
    assert "exit codes [1, 1]" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.remedy


def test_a_server_is_tried_only_when_asked(held_port: int, monkeypatch: pytest.MonkeyPatch):
    environ = {"WANDB_BASE_URL": f"http://user:secret@127.0.0.1:{held_port}"}
    found = only(reach.trackers(environ, network=True), "W&B server")
    assert found.state == "ok"
    assert "secret" not in str(found)

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no connection was asked for")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    assert only(reach.trackers(environ, network=False), "W&B server").state == "ok"


def test_a_server_that_does_not_answer_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    found = only(reach.trackers({"WANDB_BASE_URL": f"http://127.0.0.1:{closed}"}, network=True), "W&B server")
    assert found.state == "problem"
    assert "offline" in found.remedy


def test_a_check_that_fails_is_a_finding():
    def broken() -> Iterable[Diagnosis]:
        raise RuntimeError("no such file: /proc")

    (found,) = examination.outcome("memory", broken)
    assert (found.subject, found.state) == ("memory", "problem")
    assert "/proc" in found.found


def test_the_verb_shows_all_and_exits_by_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(job, "meeting", lambda: [Diagnosis("two processes", "ok", "met")])
    assert doctor.main(["--folder", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"torch", "disk", "loopback", "two processes", "W&B key"} <= {one["subject"] for one in found}
    monkeypatch.setattr(job, "meeting", lambda: [Diagnosis("two processes", "problem", "no sum", "an interface")])
    assert doctor.main(["--folder", str(tmp_path)]) == 1
    assert "1 problems" in capsys.readouterr().out
    assert doctor.main(["--fodler"]) == 2


def test_examining_needs_no_folder_and_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job, "meeting", list)
    states = {one.state for one in examine(tmp_path / "absent", {}, network=False)}
    assert "problem" not in states

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
import torch
from packaging.requirements import Requirement

from largebatch.cli import doctor
from largebatch.run.config.reading import parse_config
from largebatch.run.config.schema import TrainConfig
from largebatch.run.doctor import connections, examination, machine
from largebatch.run.doctor.finding import Finding
from tests.unit.composing import compose_run

MIB = 1 << 20


def only(found: Iterable[Finding], subject: str) -> Finding:
    (one,) = [each for each in found if each.subject == subject]
    return one


@pytest.fixture
def held_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


def config(*overrides: str) -> TrainConfig:
    return parse_config(compose_run(*overrides))


@pytest.mark.parametrize(
    ("wanted", "state", "told"),
    [
        ("numpy>=1", "ok", ">=1"),
        ("numpy>=99", "problem", "needs >=99"),
        ("no-such-package>=1", "problem", "not installed"),
    ],
)
def test_versions_are_held_against_the_range(wanted: str, state: str, told: str):
    found = machine.of_package(Requirement(wanted))
    assert (found.state, told in found.found) == (state, True)
    assert (f'Run pip install "{wanted}".' in found.found) == (state == "problem")


@pytest.mark.bad_input("plots without matplotlib")
def test_every_direct_dependency_is_looked_at():
    assert {"torch", "accelerate", "hydra-core", "wandb", "safetensors"} <= {one.subject for one in machine.versions()}


def test_a_missing_backend_and_compiler_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = list(machine.devices())
    assert only(found, "backends").state == "problem"
    assert only(found, "compiler").state == "note"


def test_a_driver_that_torch_does_not_see_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert only(machine.devices(), "GPU").state == "problem"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(machine.devices(), "GPU").state == "note"


@pytest.mark.fault(58, "too many threads", "told with the number that fits")
def test_more_threads_than_cores_are_told_with_the_number_that_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    (found,) = machine.cores({"LOCAL_WORLD_SIZE": "4"})
    assert (found.state, "OMP_NUM_THREADS=2" in found.found) == ("note", True)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    (found,) = machine.cores({"LOCAL_WORLD_SIZE": "4"})
    assert found.state == "ok"


@pytest.mark.bad_input("too many loading processes, or too little shared memory")
def test_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = shutil.disk_usage(tmp_path)._replace(total=64 * MIB, used=0, free=64 * MIB)  # what docker gives
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = only(machine.memory(tmp_path), "shared memory")
    assert (found.state, "--shm-size" in found.found) == ("note", True)
    assert only(machine.memory(tmp_path / "absent"), "shared memory").state == "note"


def test_a_disk_that_works_is_left_as_it_was(tmp_path: Path):
    found = list(machine.disk(tmp_path))
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
    assert (found.state, "ENOSPC" in found.found, "run.root" in found.found) == ("problem", True, True)
    assert not list(tmp_path.iterdir())


def test_what_stops_the_start_of_a_run_is_told_in_its_own_words(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    environ = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WANDB_MODE": "sometimes"}
    found = list(examination.start_of_a_run(config(f"run.root={tmp_path}/runs/a", "logger.wandb.mode=auto"), environ))
    assert {one.state for one in found} == {"problem"}
    assert "RANK is not" in only(found, "launcher").found
    assert "Start with torchrun or accelerate launch, or unset it." in only(found, "launcher").found
    assert "WANDB_MODE=sometimes" in only(found, "settings").found
    assert "cannot be written to. Choose run.dir or run.root elsewhere." in only(found, "run folder").found
    found = list(examination.start_of_a_run(config(f"run.root={tmp_path}"), {"SLURM_JOB_ID": "7"}))
    assert {one.state for one in found if one.subject != "Slurm"} == {"ok"}
    assert only(found, "Slurm").state == "note"


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 4096))
    (found,) = machine.open_files()
    assert (found.state, "ulimit -n 4096" in found.found) == ("note", True)
    (found,) = machine.open_files(2048)
    assert (found.state, "the store of 2048 ranks needs 6656" in found.found) == ("problem", True)


@pytest.mark.fault(54, "port taken", "told with the remedy")
@pytest.mark.bad_input("a port that is none, or taken")
def test_a_port_that_is_taken_is_a_problem_only_where_rank_0_opens_it(held_port: int):
    environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held_port), "RANK": "0"}
    assert only(connections.ports(environ), "MASTER_PORT").state == "problem"
    under_torchrun = environ | {"TORCHELASTIC_RUN_ID": "none"}  # its agent holds the port: that is as it should be
    assert "MASTER_PORT" not in {one.subject for one in connections.ports(under_torchrun)}
    assert "MASTER_PORT" not in {one.subject for one in connections.ports(environ | {"RANK": "1"})}


def test_an_address_that_nobody_knows_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def unknown(*arguments: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert only(connections.ports({"MASTER_ADDR": "node-0"}), "MASTER_ADDR").state == "problem"


def test_two_processes_meet():
    (found,) = connections.meeting()
    assert found.state == "ok", found


def test_processes_that_cannot_meet_are_told_with_their_exit_codes(monkeypatch: pytest.MonkeyPatch):
    """Forked, since it is here for what gloo says: spawned ones are in the test above."""
    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchinterface")
    (found,) = connections.meeting()
    assert found.state == "problem"
    assert "exit codes [1, 1]" in found.found
    assert "GLOO_SOCKET_IFNAME" in found.found


def test_a_server_is_tried_only_when_asked(held_port: int, monkeypatch: pytest.MonkeyPatch):
    environ = {"WANDB_BASE_URL": f"http://user:secret@127.0.0.1:{held_port}"}
    found = only(connections.wandb_server(environ, network=True), "W&B server")
    assert found.state == "ok"
    assert "secret" not in str(found)

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no connection was asked for")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    assert only(connections.wandb_server(environ, network=False), "W&B server").state == "ok"


def test_a_server_that_does_not_answer_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    found = only(connections.wandb_server({"WANDB_BASE_URL": f"http://127.0.0.1:{closed}"}, network=True), "W&B server")
    assert found.state == "problem"
    assert "offline" in found.found


def test_a_check_that_fails_is_a_finding():
    def broken() -> Iterable[Finding]:
        raise RuntimeError("no such file: /proc")

    (found,) = examination.outcome("memory", broken)
    assert (found.subject, found.state) == ("memory", "problem")
    assert "/proc" in found.found


def test_the_verb_shows_all_and_exits_by_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(connections, "meeting", lambda: [Finding("two processes", "ok", "met")])
    assert doctor.main(["--folder", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"torch", "disk", "launcher", "two processes", "W&B key"} <= {one["subject"] for one in found}
    monkeypatch.setattr(connections, "meeting", lambda: [Finding("two processes", "problem", "no sum. An interface.")])
    assert doctor.main(["--folder", str(tmp_path)]) == 1
    assert "1 problem," in capsys.readouterr().out
    assert doctor.main(["--fodler"]) == 2


def test_examining_needs_no_folder_and_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "meeting", list)
    found = examination.examine(config(f"run.root={tmp_path}/absent"), {}, network=False)
    states = {one.state for one in found}
    assert "problem" not in states


@pytest.mark.parametrize(
    ("environ", "state", "told"),
    [
        ({}, "ok", "`torchfrtrace RUN/flight_recorder --prefix rank_`"),
        ({"TORCH_FR_DUMP_TEMP_FILE": "/d/nccl_"}, "ok", "`torchfrtrace /d --prefix nccl_`"),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"}, "note", "off: "),
    ],
)
def test_on_gpus_the_flight_recorder_is_told_with_the_command_that_reads_it(
    environ: dict[str, str], state: str, told: str, monkeypatch: pytest.MonkeyPatch
):
    assert list(connections.flight_recorder(environ)) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (finding,) = connections.flight_recorder(environ)
    assert finding.state == state
    assert told in finding.found

"""How the ranks of a job meet, with threads for ranks: the stores are those that processes would have."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from largebatch.cli import train
from largebatch.distributed import rendezvous as process_group
from largebatch.distributed.membership import TimeLimits
from largebatch.distributed.rendezvous import LauncherError, rendezvous
from largebatch.distributed.runtime import Runtime
from tests.launcher import LAUNCHER

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def environment(rank: int, world_size: int, port: int, **others: str) -> dict[str, str]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), **place, **others}


def meet(environ: Mapping[str, str], timeout_s: float, gpu: str | None = None) -> str:
    """What became of it: nothing, or the error."""
    try:
        with rendezvous(environ, timeout_s=timeout_s, gpu=gpu):
            return ""
    except LauncherError as error:
        return str(error)


def meet_all(*ranks: tuple[Mapping[str, str], float]) -> list[str]:
    """For each rank its environment and its seconds."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda rank: meet(*rank), ranks))


@pytest.mark.fault(55, "a node never comes", "bounded, count told")
def test_ranks_that_do_not_come_are_counted_and_named_and_nothing_is_left_behind(
    port: int, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environment(0, 3, port).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(LauncherError) as caught:
        Runtime.open(limits=TimeLimits(rendezvous_s=0.5, collective_s=5))
    assert str(caught.value).startswith(
        f"1 of 3 ranks joined at 127.0.0.1:{port} within 0.5 s (launcher.rendezvous_timeout_s). Missing: ranks 1, 2 "
        f"(2 of 3); the others are on {socket.gethostname()}. "
    )
    assert "Start the missing ones" in str(caught.value)
    assert dict(os.environ) == before
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    alone = Runtime.open()
    assert alone.world_size == 1
    alone.close()


@pytest.mark.fault(55)
@pytest.mark.usefixtures("in_a_folder")
def test_a_run_whose_other_ranks_do_not_come_ends_with_one_line_as_any_wrong_input(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in environment(0, 2, port).items():
        monkeypatch.setenv(name, value)
    run = [
        "data=digits",
        "model=linear",
        "run.dir=run",
        "launcher.rendezvous_timeout_s=0.5",
        "launcher.collective_timeout_s=5",
    ]
    assert train.main(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"largebatch: 1 of 2 ranks joined at 127.0.0.1:{port} within 0.5 s")
    assert not Path("run").exists()


def test_all_ranks_pass_when_the_last_has_come_and_their_group_takes_the_server_over(port: int):
    with rendezvous(environment(0, 1, port), timeout_s=1):
        pass  # alone, nobody opens a port
    inside, stores = [], []  # the server ends with the store of rank 0, which must not be the first to leave

    def rank(number: int) -> None:
        with rendezvous(environment(number, 3, port), timeout_s=30):
            limit = timedelta(seconds=30)
            store = TCPStore("127.0.0.1", port, 3, is_master=number == 0, timeout=limit, multi_tenant=True)
            stores.append(store)
            inside.append(store.add("group", 1))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(rank, range(3)))
    assert sorted(inside) == [1, 2, 3], "one server for all of them"


@pytest.mark.fault(55)
def test_ranks_that_have_come_all_say_the_same_about_those_that_have_not(port: int):
    told = meet_all((environment(2, 4, port), 30), (environment(0, 4, port), 0.5))
    assert told[0] == told[1]
    assert told[0].startswith(f"2 of 4 ranks joined at 127.0.0.1:{port} within 0.5 s"), "the first to give up"
    assert "Missing: ranks 1, 3 (2 of 4);" in told[0]


@pytest.mark.fault(55)
def test_a_rank_that_cannot_reach_rank_0_says_where_and_why(port: int):
    told = meet(environment(1, 2, port), 0.3)
    assert told.startswith(
        f"Rank 1 of 2 could not reach rank 0 at 127.0.0.1:{port} within 0.3 s (launcher.rendezvous_timeout_s): "
        "Connection refused. "
    )
    assert "check that MASTER_ADDR names its host" in told


def test_rank_0_at_an_address_of_another_host_cannot_reach_itself(port: int, monkeypatch: pytest.MonkeyPatch):
    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(process_group.socket, "create_connection", connect)
    told = meet(environment(0, 2, port) | {"MASTER_ADDR": "192.0.2.1"}, 0.3)
    assert told.startswith(
        f"Rank 0 of 2 cannot reach itself at 192.0.2.1:{port} within 0.3 s (launcher.rendezvous_timeout_s): No route "
        "to host. MASTER_ADDR must be an address of rank 0's host"
    )


@pytest.mark.fault(54)
@pytest.mark.bad_input("a port that is none, or taken")
def test_a_port_that_is_taken_is_told_by_rank_0_with_the_variable_to_set():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        told = meet(environment(0, 2, number), 0.3)
    assert told.startswith(f"Rank 0 cannot open MASTER_PORT={number}: address already in use. ")
    assert "Set MASTER_PORT to a free port" in told


def test_a_program_that_has_the_port_and_says_nothing_does_not_hold_a_rank(monkeypatch: pytest.MonkeyPatch):
    """For such a one the store of torch 2.13 waits for ever, whatever its time limit is."""
    released = threading.Event()
    monkeypatch.setattr(process_group.dist, "TCPStore", lambda *_, **__: released.wait(20))
    monkeypatch.setattr(process_group, "_CONNECTING_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = meet(environment(1, 2, silent.getsockname()[1]), 0.3)
    released.set()
    assert told.startswith(
        "Rank 1 of 2 waited for 0.3 s (launcher.rendezvous_timeout_s) and got no answer at 127.0.0.1:"
    )


def test_a_rank_whose_rank_0_leaves_while_it_waits_says_so(port: int):
    server = TCPStore("127.0.0.1", port, None, True, timeout=timedelta(seconds=30), wait_for_workers=False)
    told: list[str] = []
    waiting = threading.Thread(target=lambda: told.append(meet(environment(1, 2, port), 30)))
    waiting.start()
    server.get("largebatch/0/2/0/came")  # is there when it waits
    del server
    waiting.join()
    assert told[0].startswith(f"Rank 0 of 2 was at 127.0.0.1:{port} and left before all ranks had joined: ")


def test_the_next_job_of_the_same_processes_waits_for_all_of_them_again(port: int):
    """Their store keeps what they wrote in the last one."""
    server = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, multi_tenant=True)
    for _ in range(2):
        assert meet_all(*((environment(rank, 2, port), 30) for rank in range(2))) == ["", ""]
    assert "Missing: rank 1;" in meet(environment(0, 2, port), 0.3)
    del server


def test_a_restart_by_torchrun_meets_anew_in_the_store_of_its_agent(port: int):
    agent = TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    of_agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    assert meet_all(*((environment(rank, 2, port, **of_agent), 30) for rank in range(2))) == ["", ""]
    of_agent["TORCHELASTIC_RESTART_COUNT"] = "1"
    assert "Missing: rank 1;" in meet(environment(0, 2, port, **of_agent), 0.3)
    assert agent.check(["largebatch/1/2/1/outcome"])


def test_two_ranks_on_one_gpu_are_refused_before_nccl_starts(port: int):
    with ThreadPoolExecutor(3) as pool:
        gpus = ("A 0000:3b:00", "A 0000:5e:00", "A 0000:3b:00")
        told = list(pool.map(lambda rank: meet(environment(rank, 3, port), 30, gpus[rank]), range(3)))
    assert told[0] == told[1] == told[2]
    assert told[0].startswith(("Ranks 0 and 2 on ", "Ranks 2 and 0 on "))
    assert "are on the same GPU (A 0000:3b:00). NCCL refuses that, also for two MIG slices of one GPU." in told[0]

"""What becomes of an error of the backend; ranks that are really lost are in tests/faults."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch.distributed import HashStore, Store, TCPStore

from largebatch.distributed import lost_ranks
from largebatch.distributed.lost_ranks import LostRankError, naming_lost_ranks

BACKEND = "[gloo/transport/tcp/pair.cc:538] Connection closed by peer"


def say(rank: int, world_size: int, error: str = BACKEND) -> None:
    """Let a collective of a rank break, on which the roll is called."""
    runtime: Any = SimpleNamespace(rank=rank, world_size=world_size)
    with naming_lost_ranks(runtime, lambda: "step 7", roll_call_s=0.2):
        raise RuntimeError(error)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=30), wait_for_workers=False)
    monkeypatch.setattr(lost_ranks, "_get_default_store", lambda: server)
    return server


def test_ranks_that_do_not_answer_the_roll_are_named(store: Any):
    store.append("largebatch/roll_call/here", "2 ")
    with pytest.raises(
        LostRankError, match=r"^Ranks 1, 3 \(2 of 4\) left the run or do not answer: rank 0 waited in step 7 "
    ):
        say(0, 4)


def test_an_error_of_ones_own_and_one_that_all_ranks_have_go_on(store: Any):
    with pytest.raises(RuntimeError, match=r"^a shape$"):
        say(0, 2, "a shape")
    store.append("largebatch/roll_call/here", "1 ")
    with pytest.raises(RuntimeError, match=r"^.gloo"):
        say(0, 2)


def ended() -> Store:
    server = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    return TCPStore("127.0.0.1", server.port, None, False, wait_for_workers=False)


def silent() -> Any:
    """As behind a link that was cut."""
    return SimpleNamespace(append=lambda *_: threading.Event().wait(20))


@pytest.mark.parametrize("unreachable", [ended, silent])
def test_without_an_answer_of_the_store_rank_0_or_the_network_to_it_is_gone(
    unreachable: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}.items():
        monkeypatch.setenv(name, value)
    store = unreachable()
    monkeypatch.setattr(lost_ranks, "_get_default_store", lambda: store)
    monkeypatch.setattr(lost_ranks, "_ANSWER_S", 0.2)
    with pytest.raises(LostRankError, match=r"^Rank 0 or the network to it is gone: rank 1 .* at 10\.0\.0\.1:29400 "):
        say(1, 2)


def test_the_roll_of_two_hundred_ranks_asks_the_store_a_few_times_per_rank():
    """Each asking for each other one would be 40,000 requests, and all would take the busy store for a lost rank 0."""
    store, requests = HashStore(), []
    told, _ = call_the_roll([*range(7), *range(8, 200)], 200, lambda: Counted(store, requests), roll_call_s=1.0)
    assert told == {"[7]": 199}
    callers_look = lost_ranks._CALLERS * 1.0 / 0.05
    assert len(requests) <= 6 * 199 + callers_look


@pytest.mark.soak
def test_the_roll_of_4096_ranks_names_the_lost_ones_in_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Threads for ranks, each with a connection of its own to one server, as in a job of 512 nodes."""
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")  # a client looks up its own name, here without an answer
    server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=300), wait_for_workers=False)
    present = [rank for rank in range(4096) if rank not in (0, 7, 4000)]
    with get_context("spawn").Pool(8) as pool:
        called = pool.starmap(lose_a_collective, [(server.port, present[one::8], 4096, 4093) for one in range(8)])
    told = sum((one for one, _ in called), Counter[str]())
    longest_s = max(waited_s for _, waited_s in called)
    with capsys.disabled():
        print(f"\nroll call of 4,096 ranks: the longest wait was {longest_s:.2f} s")
    assert told == {"[0, 7, 4000]": 4093}
    assert longest_s < lost_ranks.ROLL_CALL_S + lost_ranks._answer_s(4096)


class Counted:
    """A store that notes what it is asked."""

    def __init__(self, store: Store, requests: list[str]) -> None:
        self._store, self._requests = store, requests

    def __getattr__(self, name: str) -> Any:
        self._requests.append(name)
        return getattr(self._store, name)


def lose_a_collective(port: int, present: list[int], world_size: int, num_present: int) -> tuple[Counter[str], float]:
    """As `call_the_roll`, in one of several processes: all ranks begin when the last has connected."""

    def connect() -> Any:
        store = TCPStore("127.0.0.1", port, None, False, timeout=timedelta(seconds=300), wait_for_workers=False)
        if store.add("connected", 1) == num_present:
            store.set("go", "")
        store.wait(["go"])
        return store

    return call_the_roll(present, world_size, connect, roll_call_s=lost_ranks.ROLL_CALL_S)


def call_the_roll(
    present: Sequence[int], world_size: int, connect: Callable[[], Any], *, roll_call_s: float
) -> tuple[Counter[str], float]:
    """Let all these ranks lose a collective: what they are told, and the longest wait in seconds."""

    def lose(rank: int) -> tuple[str, float]:
        store, runtime = connect(), SimpleNamespace(rank=rank, world_size=world_size)
        began = time.monotonic()
        missing = lost_ranks._roll_call(store, cast(Any, runtime), roll_call_s)
        return str(missing), time.monotonic() - began

    with ThreadPoolExecutor(len(present)) as pool:
        said = list(pool.map(lose, present))
    return Counter(missing for missing, _ in said), max(waited_s for _, waited_s in said)

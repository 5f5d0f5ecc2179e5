"""What becomes of an error of the backend; ranks that are really lost are in tests/faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import Store, TCPStore

from largebatch.distributed import lost_ranks
from largebatch.distributed.lost_ranks import LostRankError, naming_lost_ranks

BACKEND = "[gloo/transport/tcp/pair.cc:538] Connection closed by peer"


def say(rank: int, world_size: int, error: str = BACKEND) -> None:
    """Let a collective of a rank break, on which the roll is called."""
    runtime: Any = SimpleNamespace(rank=rank, world_size=world_size)
    with naming_lost_ranks(runtime, lambda: "step 7", roll_call_s=0.2):
        raise RuntimeError(error)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    server = TCPStore("127.0.0.1", 0, None, True, timeout=timedelta(seconds=30), wait_for_workers=False)
    monkeypatch.setattr(lost_ranks, "_get_default_store", lambda: server)
    return server


def test_ranks_that_do_not_answer_the_roll_are_named(store: Store):
    store.set("largebatch/roll_call/2", "here")
    with pytest.raises(
        LostRankError, match=r"^Ranks 1, 3 \(2 of 4\) left the run or do not answer: rank 0 waited in step 7 "
    ):
        say(0, 4)


def test_an_error_of_ones_own_and_one_that_all_ranks_have_go_on(store: Store):
    with pytest.raises(RuntimeError, match=r"^a shape$"):
        say(0, 2, "a shape")
    store.set("largebatch/roll_call/1", "here")
    with pytest.raises(RuntimeError, match=r"^.gloo"):
        say(0, 2)


def ended() -> Store:
    server = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    return TCPStore("127.0.0.1", server.port, None, False, wait_for_workers=False)


def silent() -> Any:
    """As behind a link that was cut."""
    return SimpleNamespace(set=lambda *_: threading.Event().wait(20))


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

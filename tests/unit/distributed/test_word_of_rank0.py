"""What rank 0 finds out before there is a process group, with threads for ranks: the stores are those of processes."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from largebatch.distributed import word_of_rank0 as words
from largebatch.distributed.rendezvous import LauncherError, rendezvous
from largebatch.distributed.word_of_rank0 import calling_off, word_of_rank0
from tests.unit.distributed.test_rendezvous import environment, port

__all__ = ["port"]
pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.fixture(autouse=True)
def first_call_of_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_CALLS", itertools.repeat(0))


def asked(world_size: int, port: int, find_out: Any, *, then_meets: bool = False) -> tuple[list[Any], list[int]]:
    """What each rank gets, or the type and the text of its error; and the ranks that were asked to find out."""
    callers: list[int] = []

    def rank(number: int) -> Any:
        def own() -> Any:
            callers.append(number)
            return find_out()

        environ = environment(number, world_size, port)
        try:
            word = word_of_rank0(environ, own, is_final=lambda _: True, timeout_s=20)
            if then_meets:
                with rendezvous(environ, timeout_s=20):
                    pass
            return word
        except Exception as error:
            return type(error), str(error)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(rank, range(world_size))), callers


def test_rank_0_alone_is_asked_and_every_rank_has_its_word_and_meets_behind_it(port: int):
    told, callers = asked(3, port, lambda: {"errors": ("one", "two")}, then_meets=True)
    assert told == [{"errors": ("one", "two")}] * 3
    assert callers == [0]


def test_a_rank_0_that_fails_ends_the_others_with_its_reason_at_once(port: int):
    def fail() -> Any:
        raise ZeroDivisionError("division of the batch")

    (first, text), *others = asked(3, port, fail)[0]
    assert (first, text) == (ZeroDivisionError, "division of the batch")
    for kind, told in others:
        assert kind is LauncherError
        assert "Rank 0 of 3 failed while it tried the run: ZeroDivisionError: division of the batch" in told


def test_a_rank_0_that_is_gone_is_missed_and_one_that_never_comes_is_waited_for_in_time(port: int):
    environ = environment(1, 2, port)
    with pytest.raises(LauncherError, match=r"Rank 1 of 2 could not reach rank 0 .* within 0\.3 s"):
        word_of_rank0(environ, lambda: None, is_final=bool, timeout_s=0.3)


def test_a_single_process_finds_out_for_itself(port: int):
    assert word_of_rank0(environment(0, 1, port), lambda: 1, is_final=bool, timeout_s=1) is None
    assert word_of_rank0({}, lambda: 1, is_final=bool, timeout_s=1) is None


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_that_fails_alone_behind_the_word_ends_those_that_wait_for_it(port: int, failing: int):
    def start(number: int) -> None:
        environ = environment(number, 3, port)
        word_of_rank0(environ, lambda: "go", is_final=lambda _: False, timeout_s=20)
        with calling_off(environ, lambda text: text.replace("secret", "***")):
            if number == failing:
                raise FileNotFoundError("no secret/shard on this node")
        with rendezvous(environ, timeout_s=600):
            pass

    def error_of(number: int) -> str:
        with pytest.raises((FileNotFoundError, LauncherError)) as caught:
            start(number)
        return str(caught.value)

    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(error_of, range(3)))
    assert told.pop(failing) == "no secret/shard on this node"
    assert all(f"Rank {failing} of 3 on " in text and "no ***/shard" in text for text in told)

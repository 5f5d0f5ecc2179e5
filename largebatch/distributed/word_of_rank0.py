"""Rank 0's word before a process group exists: what it has found out counts for every rank."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError
from typing import Any, TypeVar

import torch.distributed as dist

from largebatch.distributed.rendezvous import LauncherError, MeetingPoint
from largebatch.distributed.waiting import growing_pauses, within

T = TypeVar("T")

_CALLS = itertools.count()  # all ranks make the same calls
_HEARD_S = 3.0


def word_of_rank0(
    environ: Mapping[str, str], find_out: Callable[[], T], *, is_final: Callable[[T], bool], timeout_s: float
) -> T | None:
    """The result of `find_out` on rank 0, its pickled copy on every other rank. Every rank calls it.

    The other ranks wait without a limit while rank 0 works, as long as its store answers.

    Args:
        environ: as a launcher sets it.
        find_out: called on rank 0 alone.
        is_final: whether a result ends the job: rank 0 then waits until the others have heard it, for some seconds.
        timeout_s: seconds to wait for rank 0 to start.

    Returns:
        None on every rank if there are no other ranks, or if they have a process group and need no word.

    Raises:
        LauncherError: on the other ranks, if rank 0 cannot be reached, or ends without a word.
        Exception: on rank 0, whatever `find_out` raises; the others then raise LauncherError with its text.
    """
    place = MeetingPoint.of(environ, timeout_s)
    if place is None or dist.is_initialized():
        return None
    try:
        store = within(timeout_s + _HEARD_S, place.open_store)
    except TimeoutError:
        raise LauncherError(place.no_answer()) from None
    place.keep(store)
    own = dist.PrefixStore(f"largebatch/{place.attempt}/word/{next(_CALLS)}", store)
    return _told(own, place) if place.rank else _found_out(own, place, find_out, is_final)


@contextlib.contextmanager
def calling_off(environ: Mapping[str, str], hidden: Callable[[str], str]) -> Iterator[None]:
    """An error within ends the ranks that this one leaves alone, between rank 0's word and the process group.

    Args:
        environ: as a launcher sets it.
        hidden: takes secrets out of a text.
    """
    try:
        yield
    except BaseException as error:
        place = MeetingPoint.of(environ, 0)
        if place is not None and not dist.is_initialized():
            reason = hidden(f"{type(error).__name__}: {error}")
            place.call_off(f"Rank {place.rank} of {place.world_size} on {socket.gethostname()} cannot start. {reason}")
        raise


def _found_out(store: Any, place: MeetingPoint, find_out: Callable[[], T], is_final: Callable[[T], bool]) -> T:
    try:
        word = find_out()
    except BaseException as error:
        store.set("word", pickle.dumps((f"{type(error).__name__}: {error}", None)))
        _wait_until_heard(store, place)
        raise
    store.set("word", pickle.dumps((None, word)))
    if is_final(word):
        _wait_until_heard(store, place)
    return word


def _wait_until_heard(store: dist.Store, place: MeetingPoint) -> None:
    """The server ends with rank 0."""
    end = time.monotonic() + _HEARD_S
    while place.opens_port and store.add("heard", 0) < place.world_size - 1 and time.monotonic() < end:
        time.sleep(0.05)


def _told(store: dist.Store, place: MeetingPoint) -> Any:
    pauses = growing_pauses()
    try:
        while not store.check(["word"]):
            time.sleep(next(pauses))
        failure, word = pickle.loads(store.get("word"))
    except dist.DistError as error:
        raise LauncherError(
            f"Rank 0 of {place.world_size} was at {place} and left before it had tried the run (rank {place.rank}: "
            f"{str(error).partition(chr(10))[0]}). See the output of rank 0 for the cause."
        ) from None
    with contextlib.suppress(dist.DistError):  # rank 0 may be gone by now
        store.add("heard", 1)
    if failure is not None:
        raise LauncherError(f"Rank 0 of {place.world_size} failed while it tried the run: {failure}. See its output.")
    return word

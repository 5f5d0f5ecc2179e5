"""Where the ranks of a job meet before their process group exists, and how they leave it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

_LEFT_GROUPS: list[Any] = []
_ALL_HERE = "all"
_LONGEST_PAUSE_S = 0.2  # between two looks at something that is not there yet
_CONNECTING_S = 5.0  # one attempt, where nothing answers
_MOST_NAMED = 8


class LauncherError(RuntimeError):
    """The processes that the launcher started do not fit together as the ranks of one job."""


@contextlib.contextmanager
def rendezvous(environ: Mapping[str, str], *, timeout_s: float) -> Iterator[None]:
    """Hold a rank back until every rank that the launcher started is here; the process group is opened inside.

    Torch's own rendezvous has the time limit of the collectives, lets all but rank 0 pass before the others have come,
    and waits for ever where something else has the port. Here all ranks learn the same outcome in time, in words.

    Rank 0 opens MASTER_PORT, unless an agent of torchrun has. Torch keeps one server for each port of a process, so the
    group finds it open and takes it over. A single process passes at once, and an environment that does not say where
    to meet.

    Args:
        environ: WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT, as torchrun, accelerate launch or a person set them.
        timeout_s: seconds to wait for the others.

    Raises:
        LauncherError: if ranks are missing after that time, or this one cannot reach rank 0 or open its port.
    """
    place = _Address.of(environ, timeout_s)
    if place is None:
        yield
        return
    try:
        store, outcome = within(timeout_s + _CONNECTING_S, place.join)
    except TimeoutError:
        raise LauncherError(
            f"Rank {place.rank} of {place.world_size} waited for {timeout_s:g} s (launcher.rendezvous_timeout_s) and "
            f"got no answer at {place}, neither to the name nor to the first message: another program has this port, "
            "or the network swallows what is sent. Set MASTER_PORT to one that no other program has, the same for all "
            "ranks, and MASTER_ADDR to an IP address."
        ) from None
    if outcome != _ALL_HERE:
        if place.opens_port:
            time.sleep(2 * _LONGEST_PAUSE_S)  # the server ends with this process, and the others read the outcome there
        del store
        raise LauncherError(outcome)
    yield


@dataclass(frozen=True)
class _Address:
    """Where one rank meets the others: at `address`:`port`, which it opens itself or not."""

    address: str
    port: int
    rank: int
    world_size: int
    attempt: str
    opens_port: bool
    limit_s: float

    @classmethod
    def of(cls, environ: Mapping[str, str], limit_s: float) -> _Address | None:
        names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
        if not all(environ.get(name) for name in names) or int(environ["WORLD_SIZE"]) == 1:
            return None
        rank, agent = int(environ["RANK"]), environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            environ["MASTER_ADDR"],
            int(environ["MASTER_PORT"]),
            rank,
            int(environ["WORLD_SIZE"]),
            environ.get("TORCHELASTIC_RESTART_COUNT", "0"),  # the store of an agent outlives a restart of its ranks
            opens_port=rank == 0 and not agent,
            limit_s=limit_s,
        )

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    def join(self) -> tuple[dist.Store, str]:
        """The store in which the ranks met, and what came of it: `_ALL_HERE`, or what every rank has to say."""
        end = time.monotonic() + self.limit_s
        # The server listens everywhere. Its own rank connects by a name that cannot be wrong.
        store = self._store("localhost", end) if self.opens_port else None
        self._reach(end)
        if store is None:
            store = self._store(self.address, end)
        try:
            return store, self._meet(dist.PrefixStore(f"largebatch/{self.attempt}/{self.world_size}", store), end)
        except dist.DistError as error:
            raise LauncherError(
                f"Rank 0 of {self.world_size} was at {self} and left before all others had come: {_line(error)} (rank "
                f"{self.rank}). Its own output says why."
            ) from None

    def _store(self, host: str, end: float) -> dist.TCPStore:
        left = timedelta(seconds=max(1.0, end - time.monotonic()))
        try:
            return dist.TCPStore(
                host, self.port, None, self.opens_port, timeout=left, wait_for_workers=False, multi_tenant=True
            )
        except dist.DistError as error:
            if not self.opens_port:
                raise LauncherError(
                    f"Rank {self.rank} of {self.world_size} found no store of a job at {self}: {_line(error)}. Rank 0 "
                    "or torchrun opens it there. Set MASTER_PORT to a port that no other program has, the same for all."
                ) from None
            raise LauncherError(
                f"Rank 0 cannot open MASTER_PORT={self.port}: {_line(error)}. All ranks of a job meet at this port of "
                "rank 0's host. Set MASTER_PORT to a free one, the same for all ranks, or start with torchrun, which "
                "finds one."
            ) from None

    def _reach(self, end: float) -> None:
        """Until rank 0's port can be connected to."""
        pauses = _pauses()
        while True:
            try:
                left = end - time.monotonic()
                with socket.create_connection((self.address, self.port), timeout=min(_CONNECTING_S, max(left, 0.1))):
                    return
            except OSError as error:
                if time.monotonic() > end:
                    raise LauncherError(self._unreachable(error)) from None
            time.sleep(next(pauses))

    def _unreachable(self, error: OSError) -> str:
        why = f"{self} within {self.limit_s:g} s (launcher.rendezvous_timeout_s): {error.strerror or error}"
        if self.opens_port:
            return (
                f"Rank 0 of {self.world_size} cannot reach itself at {why}. MASTER_ADDR is the address of rank 0's "
                "host, as all ranks reach it. Set it to a name or address of this host, or start rank 0 there."
            )
        return (
            f"Rank {self.rank} of {self.world_size} could not reach rank 0 at {why}. Rank 0 opens this port when it "
            "starts. Start it, check that MASTER_ADDR names its host and that nothing between the nodes blocks "
            "MASTER_PORT, or raise launcher.rendezvous_timeout_s where nodes come one by one out of a queue."
        )

    def _meet(self, store: dist.Store, end: float) -> str:
        """The first to know writes the outcome, and all ranks go by it."""
        store.set(f"rank/{self.rank}", socket.gethostname())
        if store.add("count", 1) >= self.world_size:
            store.compare_set("outcome", "", _ALL_HERE)
        pauses = _pauses()
        while not store.check(["outcome"]):
            if time.monotonic() > end:
                store.compare_set("outcome", "", self._outcome(store))
            else:
                time.sleep(next(pauses))
        return str(store.get("outcome").decode())

    def _outcome(self, store: dist.Store) -> str:
        came = [rank for rank in range(self.world_size) if store.check([f"rank/{rank}"])]
        missing = sorted({*range(self.world_size)} - {*came})
        if not missing:
            return _ALL_HERE
        hosts = dict.fromkeys(store.get(f"rank/{rank}").decode() for rank in came)
        return (
            f"{len(came)} of {self.world_size} ranks came to {self} within {self.limit_s:g} s "
            f"(launcher.rendezvous_timeout_s). Missing: {counted_ranks(missing, self.world_size)}; the others are on "
            f"{_shortened(list(hosts))}. A job starts when all of its ranks are there. Start the missing ones, check "
            f"that {self.address} is rank 0's host and that they reach it, or raise launcher.rendezvous_timeout_s "
            "where nodes come one by one out of a queue."
        )


def counted_ranks(ranks: Sequence[int], world_size: int) -> str:
    """Names of ranks, and of how many they are; of many only the first.

    >>> counted_ranks([3], 8), counted_ranks([1, 3], 8)
    ('rank 3', 'ranks 1, 3 (2 of 8)')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {_shortened(ranks)} ({len(ranks)} of {world_size})"


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns; it runs in a thread of its own, which is left behind if it takes longer.

    Torch's stores wait for a peer that does not answer inside C++, whatever their own time limit is, and meanwhile no
    signal of the main thread is handled.

    Raises:
        TimeoutError: of concurrent.futures, if the call takes longer. What the call raises goes on.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def leave_process_group() -> None:
    """Destroy the process group of this job.

    Gloo's destructor joins its threads while it holds the GIL, which they may still need to let go of the last tensors:
    a deadlock, seen with torch 2.13 in the destructor of DDP's reducer. So the group object is kept until the
    interpreter exits, when its threads are idle.
    """
    _LEFT_GROUPS.append(dist.group.WORLD)
    dist.destroy_process_group()


def _shortened(parts: Sequence[object]) -> str:
    return ", ".join(map(str, parts[:_MOST_NAMED])) + (", ..." if len(parts) > _MOST_NAMED else "")


def _pauses() -> Iterator[float]:
    """Seconds: short at first, so that ranks that start together do not wait for the clock."""
    pause = 0.005
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _line(error: Exception) -> str:
    """The first line of torch's message, which goes on with a C++ stack, or the system's part of it."""
    return str(error).partition("\n")[0].rpartition("message: ")[2]

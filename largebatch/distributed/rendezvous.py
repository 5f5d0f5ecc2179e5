"""Rendezvous of the ranks before their process group exists."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from largebatch.distributed.waiting import growing_pauses, within

_ALL_HERE = "all"
_READING_S = 0.4  # for two polls of the others
_CONNECTING_S = 5.0  # timeout of one attempt to connect
_MOST_NAMED = 8
_KEPT: dict[tuple[str, int, int], dist.TCPStore] = {}  # rank 0's is the server that its process group takes over
_MEETINGS: Counter[tuple[str, int]] = Counter()  # of this process at an address; all ranks meet equally often
_COUNTING = 3  # the ranks that read who has come when time is up; all of them would be N lists of N


class LauncherError(RuntimeError):
    """The processes that the launcher started do not fit together as the ranks of one job."""


@contextlib.contextmanager
def rendezvous(environ: Mapping[str, str], *, timeout_s: float, gpu: str | None = None) -> Iterator[dist.Store | None]:
    """Block until every rank that the launcher started has joined; open the process group inside this context.

    Torch's own rendezvous uses the timeout of the collectives, lets all ranks but rank 0 pass before the others have
    joined, and waits forever if another program owns the port. Here all ranks get the same outcome, in time.

    Rank 0 opens MASTER_PORT, unless a torchrun agent has. Yields the store for the process group. Its keys are those of
    this meeting: a process may join one job after the other at the same port, and the store keeps what ranks wrote in
    the last one. A single process passes at once without a store, and so does an environment without an address.

    Args:
        environ: WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT, as set by torchrun, accelerate launch or by hand.
        timeout_s: seconds to wait for the others.
        gpu: what tells this rank's GPU from those of other ranks; None: it has none.

    Raises:
        LauncherError: if ranks are missing after that time, this one cannot reach rank 0 or open its port, or two ranks
            have the same GPU.
    """
    place = MeetingPoint.of(environ, timeout_s, gpu)
    if place is None:
        yield None
        return
    try:
        store, outcome = within(timeout_s + _CONNECTING_S, place.join)
    except TimeoutError:
        raise LauncherError(place.no_answer()) from None
    if outcome != _ALL_HERE:
        if place.opens_port:
            time.sleep(_READING_S)  # the server ends with this process: let the others read the outcome
        del store
        raise LauncherError(outcome)
    yield store


@dataclass(frozen=True)
class MeetingPoint:
    """Rendezvous address of one rank, `address`:`port`, and whether this rank opens the port."""

    address: str
    port: int
    rank: int
    world_size: int
    attempt: str
    opens_port: bool
    limit_s: float
    gpu: str | None

    @classmethod
    def of(cls, environ: Mapping[str, str], limit_s: float, gpu: str | None = None) -> MeetingPoint | None:
        """What a launcher's environment says; None without an address, or for a single process."""
        names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
        if not all(environ.get(name) for name in names) or int(environ["WORLD_SIZE"]) == 1:
            return None
        rank, agent = int(environ["RANK"]), environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            environ["MASTER_ADDR"],
            int(environ["MASTER_PORT"]),
            rank,
            int(environ["WORLD_SIZE"]),
            environ.get("TORCHELASTIC_RESTART_COUNT", "0"),  # an agent's store outlives a restart of its ranks
            opens_port=rank == 0 and not agent,
            limit_s=limit_s,
            gpu=gpu,
        )

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    def join(self) -> tuple[dist.Store, str]:
        """The store of the meeting and its outcome: `_ALL_HERE`, or the error that every rank raises."""
        end = time.monotonic() + self.limit_s
        store = self._next_meeting(_KEPT.get(self._place) or self.open_store())
        _MEETINGS[str(self), self.rank] += 1
        try:
            return store, self._meet(store, end)
        except dist.DistError as error:
            raise LauncherError(
                f"Rank 0 of {self.world_size} was at {self} and left before all ranks had joined: {_line(error)} (rank "
                f"{self.rank}). See the output of rank 0 for the cause."
            ) from None

    def open_store(self) -> dist.TCPStore:
        """The store of the job, within the limit; rank 0 opens it, unless a torchrun agent has."""
        end = time.monotonic() + self.limit_s
        # The server listens on all interfaces. Its own rank connects by a name that always resolves.
        store = self._store("localhost", end) if self.opens_port else None
        self._reach(end)
        return self._store(self.address, end) if store is None else store

    def keep(self, store: dist.TCPStore) -> None:
        """Meet at `store`. A rank whose rank 0 has left then knows at once: it would not find a new one in time."""
        _KEPT[self._place] = store

    def call_off(self, text: str) -> None:
        """End every rank that joins or has joined with `text`, as this one does not."""
        store = _KEPT.get(self._place)
        if store is None:
            return
        with contextlib.suppress(dist.DistError):
            self._next_meeting(store).compare_set("outcome", "", text)
            if self.opens_port:
                time.sleep(_READING_S)  # the server ends with this process: let the others read

    @property
    def _place(self) -> tuple[str, int, int]:
        return self.address, self.port, self.rank

    def _next_meeting(self, store: dist.Store) -> dist.PrefixStore:
        number = _MEETINGS[str(self), self.rank]
        return dist.PrefixStore(f"largebatch/{self.attempt}/{self.world_size}/{number}", store)

    def no_answer(self) -> str:
        """The error of a rank that waits inside C++ for a peer that does not answer."""
        return (
            f"Rank {self.rank} of {self.world_size} waited for {self.limit_s:g} s (launcher.rendezvous_timeout_s) and "
            f"got no answer at {self}, neither from name resolution nor to the first message: another program uses "
            "this port, or the network drops packets. Set MASTER_PORT to a free port, the same for all ranks, and "
            "MASTER_ADDR to an IP address."
        )

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
                    "or torchrun must open it there. Set MASTER_PORT to a free port, the same for all ranks."
                ) from None
            raise LauncherError(
                f"Rank 0 cannot open MASTER_PORT={self.port}: {_line(error)}. All ranks of a job connect to this port "
                "of rank 0's host. Set MASTER_PORT to a free port, the same for all ranks, or start with torchrun, "
                "which finds one."
            ) from None

    def _reach(self, end: float) -> None:
        """Wait until rank 0's port accepts connections."""
        pauses = growing_pauses()
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
                f"Rank 0 of {self.world_size} cannot reach itself at {why}. MASTER_ADDR must be an address of rank "
                "0's host that all ranks can reach. Set it to a name or address of this host, or start rank 0 there."
            )
        return (
            f"Rank {self.rank} of {self.world_size} could not reach rank 0 at {why}. Rank 0 opens this port when it "
            "starts. Start it, check that MASTER_ADDR names its host and that no firewall blocks MASTER_PORT, or raise "
            "launcher.rendezvous_timeout_s if nodes leave a queue one by one."
        )

    def _meet(self, store: Any, end: float) -> str:
        """The first rank to know the outcome writes it; all ranks act on it."""
        store.append("came", f"{self.rank} {socket.gethostname()}\n")
        self._claim_gpu(store)
        if store.add("count", 1) >= self.world_size:
            store.compare_set("outcome", "", _ALL_HERE)
        pauses = growing_pauses()
        while not store.check(["outcome"]):
            if time.monotonic() > end and store.add("late", 1) <= _COUNTING:
                store.compare_set("outcome", "", self._outcome(store))
            else:
                time.sleep(next(pauses))
        return str(store.get("outcome").decode())

    def _claim_gpu(self, store: Any) -> None:
        if self.gpu is None:
            return
        owner = store.compare_set(f"gpu/{self.gpu}", "", str(self.rank)).decode()
        if owner != str(self.rank):
            store.compare_set(
                "outcome",
                "",
                f"Ranks {owner} and {self.rank} on {socket.gethostname()} are on the same GPU ({self.gpu}). NCCL "
                "refuses that, also for two MIG slices of one GPU. Start one rank per GPU (--nproc-per-node gpu), or "
                "show each rank a GPU of its own with CUDA_VISIBLE_DEVICES.",
            )

    def _outcome(self, store: Any) -> str:
        came = dict(sorted((int(rank), host) for rank, host in map(str.split, store.get("came").decode().splitlines())))
        missing = sorted({*range(self.world_size)} - came.keys())
        if not missing:
            return _ALL_HERE
        hosts = dict.fromkeys(came.values())
        return (
            f"{len(came)} of {self.world_size} ranks joined at {self} within {self.limit_s:g} s "
            f"(launcher.rendezvous_timeout_s). Missing: {counted_ranks(missing, self.world_size)}; the others are on "
            f"{_shortened(list(hosts))}. A job starts when all of its ranks have joined. Start the missing ones, check "
            f"that {self.address} is rank 0's host and that they reach it, or raise launcher.rendezvous_timeout_s "
            "if nodes leave a queue one by one."
        )


def counted_ranks(ranks: Sequence[int], world_size: int) -> str:
    """Ranks and their share of the job; only the first few of many.

    >>> counted_ranks([3], 8), counted_ranks([1, 3], 8)
    ('rank 3', 'ranks 1, 3 (2 of 8)')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {_shortened(ranks)} ({len(ranks)} of {world_size})"


def _shortened(parts: Sequence[object]) -> str:
    return ", ".join(map(str, parts[:_MOST_NAMED])) + (", ..." if len(parts) > _MOST_NAMED else "")


def _line(error: Exception) -> str:
    """The first line of torch's message, or the system's part of it, without the C++ stack."""
    return str(error).partition("\n")[0].rpartition("message: ")[2]

"""Which rank broke a collective: a backend only knows that some connection is gone, or that nobody answered in time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from largebatch.distributed.rendezvous import counted_ranks, within
from largebatch.distributed.runtime import Runtime

# The others hear of a lost rank when their own connections close or their own time limit ends, which is about now.
ROLL_CALL_S = 3.0
_ANSWER_S = 2.0  # for the last answer of the store


class LostRankError(RuntimeError):
    """Other ranks have left the job or hang, or the network is gone. The message names them."""


@contextlib.contextmanager
def naming_lost_ranks(
    runtime: Runtime, where: Callable[[], str], *, roll_call_s: float = ROLL_CALL_S
) -> Iterator[None]:
    """Around collectives: if one of them breaks, a call of the roll finds the ranks that are to blame.

    Each rank whose collective broke writes its name into the store of the job, which does not need the broken
    connections; who has not written within `roll_call_s` seconds has ended, raised an error of its own, or hangs. Where
    the store does not answer either, rank 0's host or the network to it is gone.

    Args:
        runtime: the job.
        where: what this rank was doing, for the message.
        roll_call_s: how long to wait for the others.

    Raises:
        LostRankError: in place of the backend's error, if ranks or the store are missing. Without, the backend's error
            goes on.
    """
    try:
        yield
    except RuntimeError as error:
        if runtime.world_size == 1 or not _is_of_backend(error):
            raise
        missing = _missing(runtime, roll_call_s)
        if missing is None:
            raise LostRankError(_without_store(runtime.rank, where())) from error
        if not missing:
            raise
        who = counted_ranks(missing, runtime.world_size)
        raise LostRankError(
            f"{who.capitalize()} left the run or {'does' if len(missing) == 1 else 'do'} not answer: rank "
            f"{runtime.rank} waited in {where()} and then {roll_call_s:g} s more. The cause is in the output of the "
            "lost, if one was printed; without one it was killed, ended by itself, hangs, or the network to it is "
            "gone. Resume from the last checkpoint."
        ) from error


def _is_of_backend(error: RuntimeError) -> bool:
    """Gloo raises bare RuntimeErrors, most of which name its source files."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in ("gloo", "pair closure"))


def _without_store(rank: int, where: str) -> str:
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    who = "Rank 0 or the network to it" if rank else "The network of rank 0"
    return (
        f"{who} is gone: rank {rank} waited in {where} and then for the store of the job, which does not answer at "
        f"{address} on rank 0's host. If rank 0 has ended, its output says why; else look at the link between the "
        "nodes. Resume from the last checkpoint."
    )


def _missing(runtime: Runtime, roll_call_s: float) -> list[int] | None:
    """Ranks that do not answer in time; None, if the store does not."""
    try:
        store = _get_default_store()
    except ValueError:  # the job has no group any more
        return []
    try:
        return within(roll_call_s + _ANSWER_S, lambda: _roll_call(store, runtime, roll_call_s))
    except (RuntimeError, TimeoutError):
        return None


def _roll_call(store: dist.Store, runtime: Runtime, roll_call_s: float) -> list[int]:
    keys = {rank: f"largebatch/roll_call/{rank}" for rank in range(runtime.world_size)}
    end = time.monotonic() + roll_call_s
    missing = [rank for rank in keys if rank != runtime.rank]
    store.set(keys[runtime.rank], "here")
    while missing and time.monotonic() < end:
        time.sleep(0.05)
        missing = [rank for rank in missing if not store.check([keys[rank]])]
    return missing

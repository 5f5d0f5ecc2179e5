"""Find the rank that broke a collective. A backend only reports a lost connection or a timeout."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError
from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from largebatch.distributed.rendezvous import counted_ranks
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.waiting import within

# Other ranks notice a lost rank when their own connection closes or times out, at about the same time.
ROLL_CALL_S = 3.0
_ANSWER_S = 2.0  # for the last answer of the store
_ANSWER_OF_ONE_S = 0.001  # more for each rank that asks it; with 4,096 on two busy cores it took three seconds
_CALLERS = 3  # one of them may be lost meanwhile
_HERE, _MISSING = "largebatch/roll_call/here", "largebatch/roll_call/missing"


class LostRankError(RuntimeError):
    """Other ranks have left the job or hang, or the network is gone. The message names them."""


@contextlib.contextmanager
def naming_lost_ranks(
    runtime: Runtime, where: Callable[[], str], *, roll_call_s: float = ROLL_CALL_S
) -> Iterator[None]:
    """Wrap collectives: if one fails, find the ranks at fault by a roll call.

    Each rank whose collective failed reports in the store of the job, which does not use the broken connections. A rank
    that has not reported within `roll_call_s` seconds has exited, raised an error of its own, or hangs. If the store
    does not answer either, rank 0's host or the network to it is down.

    Args:
        runtime: the job.
        where: returns the operation of this rank, for the message.
        roll_call_s: seconds to wait for the others.

    Raises:
        LostRankError: in place of the backend's error, if ranks or the store are missing. Otherwise the backend's
            error propagates.
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
            f"{runtime.rank} waited in {where()} and then {roll_call_s:g} s more. Look for the cause in the output of "
            "the lost ranks. If there is none, they were killed, exited, hang, or the network to them is down. Resume "
            "from the last checkpoint."
        ) from error


def _is_of_backend(error: RuntimeError) -> bool:
    """Gloo raises bare RuntimeErrors; most name its source files."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in ("gloo", "pair closure"))


def _without_store(rank: int, where: str) -> str:
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    who = "Rank 0 or the network to it" if rank else "The network of rank 0"
    return (
        f"{who} is gone: rank {rank} waited in {where}, and then the store of the job did not answer at {address} on "
        "rank 0's host. If rank 0 has exited, its output says why; otherwise check the link between the nodes. Resume "
        "from the last checkpoint."
    )


def _missing(runtime: Runtime, roll_call_s: float) -> list[int] | None:
    """Ranks that do not answer in time; None if the store does not answer."""
    try:
        store = _get_default_store()
    except ValueError:  # the job has no group any more
        return []
    try:
        limit_s = roll_call_s + _answer_s(runtime.world_size)
        return within(limit_s, lambda: _roll_call(store, runtime, roll_call_s))
    except (RuntimeError, TimeoutError):
        return None


def _answer_s(world_size: int) -> float:
    return _ANSWER_S + _ANSWER_OF_ONE_S * world_size


def _roll_call(store: Any, runtime: Runtime, roll_call_s: float) -> list[int]:
    """Ranks that have not reported. The first few to report read the list of those here and publish who is missing.

    So the store answers four requests per rank. If each rank asked for each other one, some hundred ranks would keep
    the store busy for longer than the roll call lasts, and take that for a lost rank 0.
    """
    store.append(_HERE, f"{runtime.rank} ")
    end = time.monotonic() + roll_call_s
    if store.add("largebatch/roll_call/count", 1) <= _CALLERS:
        while time.monotonic() < end and store.add("largebatch/roll_call/count", 0) < runtime.world_size:
            time.sleep(0.05)
    else:
        with contextlib.suppress(dist.DistStoreError):  # the first few are lost as well
            store.wait([_MISSING], timedelta(seconds=roll_call_s + _answer_s(runtime.world_size) / 2))
    return [rank for rank in _published_missing(store, runtime.world_size) if rank != runtime.rank]


def _published_missing(store: Any, world_size: int) -> list[int]:
    """What the first caller has published; if nobody has, publish it."""
    if not store.check([_MISSING]):
        here = {int(rank) for rank in store.get(_HERE).split()}
        missing = [rank for rank in range(world_size) if rank not in here]
        store.compare_set(_MISSING, "", json.dumps(missing))
    return cast(list[int], json.loads(store.get(_MISSING)))

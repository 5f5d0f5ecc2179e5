"""Which rank broke a collective: a backend only knows that some connection is gone, or that nobody answered in time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from largebatch.runtime import Runtime

# The others hear of a lost rank when their own connections close or their own time limit ends, which is about now.
ROLL_CALL_S = 3.0
_MOST_NAMED = 8


class LostRankError(RuntimeError):
    """Other ranks have left the job or hang. The message names them."""


@contextlib.contextmanager
def naming_lost_ranks(
    runtime: Runtime, where: Callable[[], str], *, roll_call_s: float = ROLL_CALL_S
) -> Iterator[None]:
    """Around collectives: if one of them breaks, a call of the roll finds the ranks that are to blame.

    Each rank whose collective broke writes its name into the store of the job, which does not need the broken
    connections; who has not written within `roll_call_s` seconds has ended, raised an error of its own, or hangs.

    Args:
        runtime: the job.
        where: what this rank was doing, for the message.
        roll_call_s: how long to wait for the others.

    Raises:
        LostRankError: in place of the backend's error, if ranks are missing. Without, the backend's error goes on.
    """
    try:
        yield
    except RuntimeError as error:
        if runtime.world_size == 1 or not _is_of_backend(error):
            raise
        missing = _missing(runtime, roll_call_s)
        if not missing:
            raise
        named = ", ".join(map(str, missing[:_MOST_NAMED])) + (", ..." if len(missing) > _MOST_NAMED else "")
        who = f"Rank {named}" if len(missing) == 1 else f"Ranks {named} ({len(missing)} of {runtime.world_size})"
        raise LostRankError(
            f"{who} left the run or {'does' if len(missing) == 1 else 'do'} not answer: rank {runtime.rank} waited in "
            f"{where()} and then {roll_call_s:g} s more. The cause is in the output of the lost, if one was printed; "
            "without one it was killed, ended by itself, or hangs. Resume from the last checkpoint."
        ) from error


def _is_of_backend(error: RuntimeError) -> bool:
    """Gloo raises bare RuntimeErrors, most of which name its source files."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in ("gloo", "pair closure"))


def _missing(runtime: Runtime, roll_call_s: float) -> list[int]:
    """Ranks that do not answer in time; none, if nobody keeps a store any more."""
    keys = {rank: f"largebatch/roll_call/{rank}" for rank in range(runtime.world_size)}
    end = time.monotonic() + roll_call_s
    missing = [rank for rank in keys if rank != runtime.rank]
    try:
        store = _get_default_store()
        store.set(keys[runtime.rank], "here")
        while missing and time.monotonic() < end:
            time.sleep(0.05)
            missing = [rank for rank in missing if not store.check([keys[rank]])]
    except (RuntimeError, ValueError):  # its host has ended, or the job has no group any more
        return []
    return missing

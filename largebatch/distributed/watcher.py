"""Reads the signs of life of all ranks, and says which of them are silent or stand still."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from largebatch.distributed.rendezvous import counted_ranks

NO_STEP = -1
SILENT_BEATS = 6  # signs in a row that may fail to come
_GONE = ("left", "failed")
_REMEDY = (
    "Look at the output and the host of the named ranks; under NCCL `torchfrtrace` reads what each rank last sent. "
    "Then resume from the last checkpoint."
)


@dataclass(frozen=True)
class Sign:
    """One sign of life.

    Attributes:
        count: of the sign, so that two are never equal.
        step: that the rank is in; `NO_STEP` outside of training.
        stood_s: seconds since its training thread was last seen to move.
        host: of the rank.
        place: where its training thread is; `left` or `failed` at the end.

    >>> Sign.of(str(Sign(3, 7, 12.0, "gpu1", "loop.py:12 in train"))).place
    'loop.py:12 in train'
    """

    count: int
    step: int
    stood_s: float
    host: str
    place: str

    def __str__(self) -> str:
        return f"{self.count} {self.step} {self.stood_s:.0f} {self.host} {self.place}"

    @classmethod
    def of(cls, text: str) -> Sign:
        """The sign that `str` has written."""
        count, step, stood_s, host, place = text.split(" ", 4)
        return cls(int(count), int(step), float(stood_s), host, place)


class Watcher:
    """Rank 0 watches all ranks. A deputy watches rank 0 alone, and takes over if it falls silent.

    Ages are differences of the watcher's own clock: no two clocks are compared.

    Args:
        rank: this one; ranks that do not watch look at nothing.
        world_size: number of ranks.
        every_s: seconds between two signs.
        clock: in seconds; it must not count pauses of this process, see `AwakeClock`.
    """

    def __init__(self, rank: int, world_size: int, every_s: float, clock: Callable[[], float]) -> None:
        self._rank, self._world_size, self._silent_s = rank, world_size, SILENT_BEATS * every_s
        self._watched = {0: [*range(world_size)], deputy(world_size): [0]}.get(rank, [])
        self._texts: dict[int, str] = {}
        self._heard_at: dict[int, float] = {}
        self._are_there = False
        self._oldest, self._oldest_since = NO_STEP, 0.0
        self._clock = clock
        self._told: dict[str, object] = dict.fromkeys(("noticed", "lost"))

    def look(self, store: dist.Store, *, limit_s: float, silence_s: float) -> dict[str, str]:
        """Findings that are new, by kind: what was `noticed`, and which ranks are `lost`.

        Args:
            store: of the signs.
            limit_s: seconds after which an incomplete collective fails. Ranks that stand still are named after half.
            silence_s: seconds without a sign after which a rank is lost.

        Returns:
            An empty text where an earlier finding no longer holds.
        """
        if not self._watched:
            return {}
        keys = [f"sign/{rank}" for rank in self._watched]
        if not self._are_there:
            for key in keys:  # so that a list of all never waits for one
                store.compare_set(key, "", "")
            self._are_there = True
        texts = store.multi_get(keys)
        now = self._clock()
        for rank, text in zip(self._watched, texts, strict=True):
            if self._texts.get(rank) != (decoded := text.decode()):
                self._texts[rank], self._heard_at[rank] = decoded, now
        signs = {rank: Sign.of(text) for rank, text in self._texts.items() if text}
        silent = [rank for rank in self._watched if self._is_silent(rank, signs, now)]
        if silent and len(self._watched) < self._world_size:  # the deputy's turn
            self._watched, self._are_there = [*range(self._world_size)], False
        noticed = self._finding(signs, silent, now, limit_s, silence_s)
        is_lost = any(now - self._heard_at[rank] > silence_s for rank in silent)
        return self._new("noticed", noticed) | self._new("lost", noticed if is_lost else None)

    def _is_silent(self, rank: int, signs: dict[int, Sign], now: float) -> bool:
        has_gone = rank in signs and signs[rank].place in _GONE
        return not has_gone and now - self._heard_at[rank] > self._silent_s

    def _finding(
        self, signs: dict[int, Sign], silent: list[int], now: float, limit_s: float, silence_s: float
    ) -> tuple[str, object] | None:
        steps = {rank: sign.step for rank, sign in signs.items() if sign.place not in _GONE}
        oldest = min(steps.values(), default=NO_STEP)
        if oldest != self._oldest:
            self._oldest, self._oldest_since = oldest, now
        if silent:
            quiet_s = now - max(self._heard_at[rank] for rank in silent)
            return self._silent_text(signs, silent, quiet_s, min(limit_s, silence_s)), ("silent", tuple(silent))
        longest_s = max((signs[rank].stood_s for rank in steps), default=0.0)
        still_s = now - self._oldest_since
        if oldest == NO_STEP or min(still_s, longest_s) < limit_s / 2:
            return None
        standing = {rank: signs[rank] for rank in steps}
        return _standing_text(standing, oldest, still_s, limit_s), ("standing", oldest)

    def _new(self, kind: str, finding: tuple[str, object] | None) -> dict[str, str]:
        """The text by its kind, unless the same was told before."""
        text, what = finding or ("", None)
        if what == self._told[kind]:
            return {}
        self._told[kind] = what
        return {kind: text}

    def _silent_text(self, signs: dict[int, Sign], silent: list[int], quiet_s: float, end_s: float) -> str:
        who = counted_ranks(silent, self._world_size)
        verb = "has" if len(silent) == 1 else "have"
        last = sorted({_step_of(signs[rank]) for rank in silent if rank in signs})
        hosts = sorted({signs[rank].host for rank in silent if rank in signs})
        others = sorted({_step_of(sign) for rank, sign in signs.items() if rank not in silent})
        return (
            f"{who} on {', '.join(hosts[:8]) or 'an unknown host'} {verb} given no sign of life for {quiet_s:.0f} s, "
            f"last {' and '.join(last) or 'before the first sign'}; the others are {' and '.join(others) or 'gone'}. "
            "A silent process has ended, is stopped or holds the interpreter, or the network to it is down. Ranks that "
            f"wait end after {end_s:g} s. {_REMEDY}"
        )


def deputy(world_size: int) -> int:
    """The rank that watches rank 0: the first of another node, as the launcher tells how many a node has."""
    per_node = os.environ.get("LOCAL_WORLD_SIZE", "")
    first = int(per_node) if per_node.isdecimal() else 1
    return first if 0 < first < world_size else min(1, world_size - 1)


def _standing_text(signs: dict[int, Sign], oldest: int, still_s: float, limit_s: float) -> str:
    """Name the ranks that the others wait for: those of an older step, else those that are elsewhere than most."""
    behind = [rank for rank, sign in signs.items() if sign.step == oldest]
    most = Counter(sign.place for sign in signs.values() if sign.step > oldest or len(behind) == len(signs))
    common = most.most_common(1)[0][0]
    apart = [rank for rank in behind if signs[rank].place != common] or behind
    if len(apart) == len(signs):
        return (
            f"no rank has finished step {oldest} for {still_s:.0f} s, and all {len(signs)} wait at {common}: a link of "
            f"the network hangs, or ranks wait in different collectives. "
            f"The job ends when a collective has waited for {limit_s:g} s. {_REMEDY}"
        )
    shown = "; ".join(f"rank {rank} on {signs[rank].host} at {signs[rank].place}" for rank in apart[:8])
    return (
        f"step {oldest} has not ended for {still_s:.0f} s. The job waits for {counted_ranks(apart, len(signs))}: "
        f"{shown}. The others wait at {common}. The job ends when a collective has waited for {limit_s:g} s. {_REMEDY}"
    )


def _step_of(sign: Sign) -> str:
    return "outside of the steps" if sign.step == NO_STEP else f"in step {sign.step}"

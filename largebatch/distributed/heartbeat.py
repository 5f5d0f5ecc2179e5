"""Signs of life: ranks that raise, fall silent or stand still are named, whatever the others wait in.

Under NCCL a rank that waits for a lost one raises nothing: its host waits in the driver until torch's watchdog ends the
process, without a name. So two threads of each rank stand beside the training thread and share nothing with it. One
talks to the store of the job over a connection of its own. The other never waits for anything, and ends the process
when the job cannot go on.

Cost: two requests per rank and interval, and one list of all signs for the watcher.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from largebatch.distributed.signals import kill_children
from largebatch.distributed.waiting import AwakeClock
from largebatch.distributed.watcher import NO_STEP, SILENT_BEATS, Sign, Watcher

LAST_WORDS_S = 10.0  # for a rank whose collective has raised to call the roll and say so itself
_LEAVING_S = 0.5
_TORCH = os.path.dirname(torch.__file__)
_LIBRARIES = (_TORCH, os.path.dirname(threading.__file__))
_NAMED = "failed", "lost", "noticed"


class Heartbeat:
    """This rank's signs of life, and its view of those of the others.

    Args:
        rank, world_size: of the job.
        every_s: seconds between two signs.
        limit_s: seconds after which an incomplete collective fails.

    Attributes:
        limit_s: as above; what it is now.
        silence_s: seconds without a sign of life, after which ranks end that wait for the silent ones.
        step: the step that this rank is in, as a function; None outside of training, where ranks may stand for long.
        record: called with each finding, on the rank that watches.
    """

    def __init__(self, rank: int, world_size: int, *, every_s: float = 5.0, limit_s: float = 1800.0) -> None:
        self.rank, self.world_size, self.every_s, self.limit_s = rank, world_size, every_s, limit_s
        self.step: Callable[[], int] | None = None
        self.record: Callable[[str], None] | None = None
        self.silence_s = math.inf
        self._store: dist.Store | None = None
        self._clock = AwakeClock(2 * every_s)
        self._main = threading.get_ident()
        self._wake, self._said, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._last_words = ""
        self._failure = ""
        self._named = dict.fromkeys(_NAMED, "")
        self._named_at = self._answered_at = self._moved_at = self._clock()
        self._stack: tuple[int, ...] = ()
        self._is_cut = self._has_told = False

    def start(self, store: Any) -> None:
        """Begin; the calling thread is the one that trains.

        Args:
            store: of the job. It is cloned: a connection that others use may be busy while a collective hangs.
        """
        self._store = dist.PrefixStore("largebatch/heartbeat", store.clone())
        for work, name in ((self._talk, "heartbeat"), (self._mind, "heartbeat-end")):
            threading.Thread(target=work, args=(), name=name, daemon=True).start()

    def fails(self, error: BaseException) -> None:
        """Tell the others that this rank has an error and leaves; they end, too."""
        where = self._step_text()
        text = f"{type(error).__name__}: {error}".rstrip(": ").partition("\n")[0]
        self._failure = f"rank {self.rank} on {socket.gethostname()} failed {where}: {text[:500]}"
        self._leave("failed")

    def stop(self) -> None:
        """Say that this rank leaves after its last collective, and end."""
        self._leave("left")

    def _leave(self, last_words: str) -> None:
        if self._store is None:
            return
        self._last_words = last_words
        self._ended.set()
        self._wake.set()
        self._said.wait(_LEAVING_S)

    # ---- The thread that talks to the store, and may wait for it ----

    def _talk(self) -> None:
        store = self._store
        assert store is not None
        watcher = Watcher(self.rank, self.world_size, self.every_s, self._clock)
        try:
            for name in _NAMED:
                store.compare_set(name, "", "")
            count = 0
            while not self._ended.is_set():
                count += 1
                store.set(f"sign/{self.rank}", str(self._sign(count)))
                self._hear(store)
                self._tell(store, watcher.look(store, limit_s=self.limit_s, silence_s=self.silence_s))
                self._answered_at = self._clock()
                self._wake.wait(self.every_s)
            if self._failure:
                store.compare_set("failed", "", self._failure)
            store.set(f"sign/{self.rank}", str(self._sign(count + 1)))
        except RuntimeError:  # the store's host, or the network to it, is gone
            self._is_cut = True
        self._said.set()

    def _sign(self, count: int) -> Sign:
        stood_s = self._clock() - self._moved_at
        step = NO_STEP if self.step is None else self.step()
        return Sign(count, step, stood_s, socket.gethostname(), self._last_words or self._place())

    def _hear(self, store: dist.Store) -> None:
        heard = dict(zip(_NAMED, (text.decode() for text in store.multi_get(list(_NAMED))), strict=True))
        if heard != self._named:
            self._named, self._named_at = heard, self._clock()

    def _tell(self, store: dist.Store, findings: dict[str, str]) -> None:
        for name, text in findings.items():
            store.set(name, text)
        if (noticed := findings.get("noticed")) is not None:
            self._print(noticed or "the ranks that did not answer or stood still go on.")

    # ---- The thread that never waits ----

    def _mind(self) -> None:
        while not self._ended.wait(self.every_s):
            stack = _stack(sys._current_frames().get(self._main))
            if stack != self._stack:
                self._stack, self._moved_at = stack, self._clock()
            if (why := self._why_to_end()) is not None:
                self._end(why)

    def _why_to_end(self) -> str | None:
        """The reason that the training thread waits in vain; None: it works, or may have to wait."""
        now = self._clock()
        stood_s, unanswered_s = now - self._moved_at, now - self._answered_at
        is_late = stood_s > self.limit_s + 2 * self.every_s
        if self._named["failed"]:
            return self._named["failed"] if min(stood_s, now - self._named_at) > LAST_WORDS_S else None
        if self._named["lost"] and stood_s > LAST_WORDS_S:
            return self._named["lost"]
        if self._is_cut or unanswered_s > SILENT_BEATS * self.every_s:
            why = (
                f"the store of the job has not answered for {unanswered_s:.0f} s: rank 0's process, its host or the "
                "network to it is gone"
            )
            if stood_s > LAST_WORDS_S and not self._has_told:
                self._has_told = True
                self._print(f"{why}. This is rank {self.rank}, which waits {self._step_text()} at {self._place()}.")
            is_lost = self._is_cut or unanswered_s > self.silence_s
            return why if (stood_s > LAST_WORDS_S and is_lost) or is_late else None
        return self._named["noticed"] or None if is_late else None

    def _end(self, why: str) -> None:
        """End this process: its training thread waits for something that will not come, and handles no signal."""
        self._print(f"rank {self.rank} ends here, {self._step_text()} at {self._place()}: {why}", to_record=False)
        kill_children()
        os._exit(1)

    def _print(self, text: str, *, to_record: bool = True) -> None:
        line = f"largebatch: {text}"
        with contextlib.suppress(OSError, ValueError):  # closed, or without a reader
            print(line, file=sys.stderr, flush=True)
        if to_record and self.record is not None:
            with contextlib.suppress(OSError):
                self.record(line)

    def _step_text(self) -> str:
        return "outside of the steps" if self.step is None else f"in step {self.step()}"

    def _place(self) -> str:
        """Where the training thread is: the innermost frame that is neither torch's nor the standard library's."""
        frame = sys._current_frames().get(self._main)
        outermost = frame
        while frame is not None and os.path.dirname(frame.f_code.co_filename).startswith(_LIBRARIES):
            frame = frame.f_back
        frame = frame or outermost
        if frame is None:
            return "its end"
        name = "/".join(frame.f_code.co_filename.split("/")[-2:])
        return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _stack(frame: FrameType | None) -> tuple[int, ...]:
    """The instructions that a thread is at: another tuple once it has gone on."""
    places = []
    while frame is not None:
        places += [id(frame.f_code), frame.f_lasti]
        frame = frame.f_back
    return tuple(places)

"""The global batches of a run, one after the other, in micro-batches that fit into memory on every rank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp


class Loader(Protocol):
    """Yields this rank's micro-batches, step after step."""

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        """This rank's micro-batches of `num_steps` steps, the first of which starts after `samples_seen` samples."""

    def replan(self, plan: BatchRamp) -> None:
        """Cut the same global batches in another way from the next call of `micro_batches` on."""


@dataclass(frozen=True)
class Taken:
    """The samples of a micro-batch.

    Attributes:
        index: of the micro-batch in its step, over all ranks.
        asked: sample ids, int64 [n], skipped ones included.
        skipped: (place among these, reason) of each sample that could not be loaded.
    """

    index: int
    asked: Any
    skipped: Sequence[tuple[int, str]]


class BatchStream:
    """This rank's micro-batches, step after step.

    Args:
        loader: of this rank's micro-batches.
        ramp: how global batches are cut and shared.
        rank: this one.
        shrinks: whether micro-batches may become smaller, see `Halving`.

    Attributes:
        ramp: as given, or with smaller micro-batches.
        taken: the samples of the latest step.
        waited_s: seconds that this rank waited for them.
    """

    def __init__(self, loader: Loader, ramp: BatchRamp, rank: int, *, shrinks: bool = False) -> None:
        self.ramp = ramp
        self.taken: list[Taken] = []
        self.waited_s = 0.0
        self._planned, self._shrinks = ramp.max_micro_batch_size, shrinks
        self._rank, self._loader = rank, loader
        self._steps_left = 0
        self._micro_batches: Iterator[Any] = iter(())

    def begin(
        self, samples_seen: int, num_steps: int, *, loader: Loader | None = None, ramp: BatchRamp | None = None
    ) -> None:
        """The next step is the one after `samples_seen` samples, the first of `num_steps`; with others from here on."""
        self._loader, self.ramp = loader or self._loader, ramp or self.ramp
        self._steps_left = num_steps
        self._micro_batches = self._loader.micro_batches(samples_seen, num_steps)

    def take(self, plan: BatchPlan) -> Iterator[Any]:
        """This rank's micro-batches of the next step, which are loaded as they are asked for."""
        self.taken, self.waited_s = [], 0.0
        self._steps_left -= 1
        for _ in plan.micro_batches(self._rank):
            started = time.perf_counter()
            part = next(self._micro_batches)
            self.waited_s += time.perf_counter() - started
            self.taken.append(Taken(part.index, part.asked, part.skipped))
            yield part

    def shrink(self, samples_seen: int, size: int) -> BatchPlan:
        """Begin the step after `samples_seen` samples again, in micro-batches of at most `size` from here on."""
        self._replan(size)
        self._steps_left += 1
        self._micro_batches = self._loader.micro_batches(samples_seen, self._steps_left)
        return self.ramp.at(samples_seen)

    def follow(self, ramp: BatchRamp) -> None:
        """Cut other global batches from the next `begin` on; what is loaded ahead by then is loaded anew."""
        self.ramp = ramp
        self._loader.replan(ramp)

    def state(self) -> dict[str, Any]:
        """The most samples of a micro-batch, as planned and after shortages of memory."""
        return {"planned": self._planned, "lowered": self.ramp.max_micro_batch_size}

    @property
    def is_lowered(self) -> bool:
        """Whether shortages of memory have made the micro-batches smaller than planned."""
        return self.ramp.max_micro_batch_size < self._planned

    def load(self, state: Mapping[str, Any]) -> bool:
        """Go on in the smaller micro-batches of a process that had planned the same ones; whether there are such."""
        if not self._shrinks or state["planned"] != self._planned or state["lowered"] >= self._planned:
            return False
        self._replan(state["lowered"])
        return True

    def _replan(self, size: int) -> None:
        self.follow(self.ramp.capped(size))

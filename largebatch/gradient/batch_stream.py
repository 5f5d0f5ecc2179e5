"""The global batches of a run, one after the other, in micro-batches that fit into memory on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.gradient.global_gradient import BatchResult, GlobalGradient
from largebatch.gradient.kept_buffers import KeptBuffers
from largebatch.gradient.out_of_memory import MicroBatchTooLargeError


class Loader(Protocol):
    """Yields this rank's micro-batches, step after step."""

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        """This rank's micro-batches of `num_steps` steps, the first of which starts after `samples_seen` samples."""

    def replan(self, plan: BatchRamp) -> None:
        """Cut the same global batches in another way from the next call of `micro_batches` on."""


class BatchStream:
    """Feeds a `GlobalGradient` with the micro-batches of one step after the other.

    A step that did not fit is taken again, from its first sample, in micro-batches of half the size: by all ranks
    alike, since each of them hears of it before anything was reduced. The following steps keep that size.

    Args:
        gradient: of a global batch.
        loader: of this rank's micro-batches.
        ramp: how global batches are cut and shared.
        module: the unwrapped model, whose buffers are put back before a step is taken again; None: none is.

    Attributes:
        ramp: as given, or with smaller micro-batches.
        shortages: of memory, in the order in which they came.
    """

    def __init__(
        self, gradient: GlobalGradient, loader: Loader, ramp: BatchRamp, *, module: nn.Module | None = None
    ) -> None:
        self.ramp = ramp
        self._planned = ramp.max_micro_batch_size
        self.shortages: list[MicroBatchTooLargeError] = []
        self._gradient = gradient
        self._module = module
        self._loader = loader
        self._steps_left = 0
        self._micro_batches: Iterator[Any] = iter(())

    def begin(
        self, samples_seen: int, num_steps: int, *, loader: Loader | None = None, ramp: BatchRamp | None = None
    ) -> None:
        """The next step is the one after `samples_seen` samples, the first of `num_steps`; with others from here on."""
        self._loader, self.ramp = loader or self._loader, ramp or self.ramp
        self._steps_left = num_steps
        self._micro_batches = self._loader.micro_batches(samples_seen, num_steps)

    def state(self) -> dict[str, Any]:
        """The most samples of a micro-batch, as planned and after shortages of memory."""
        return {"planned": self._planned, "lowered": self.ramp.max_micro_batch_size}

    def load(self, state: Mapping[str, Any]) -> bool:
        """Go on in the smaller micro-batches of a process that had planned the same ones; whether there are such."""
        if self._module is None or state["planned"] != self._planned or state["lowered"] >= self._planned:
            return False
        self._replan(state["lowered"])
        return True

    def next_gradient(self, samples_seen: int, **how: Any) -> tuple[BatchPlan, BatchResult]:
        """Put the gradient of the next global batch into `.grad`.

        Args:
            samples_seen: before it.
            how: for `GlobalGradient.compute`.

        Raises:
            MicroBatchTooLargeError: on every rank, if a single sample does not fit on one.
        """
        while (result := self._try(self.ramp.at(samples_seen), how)) is None:
            self._lower(samples_seen)
        self._steps_left -= 1
        return self.ramp.at(samples_seen), result

    def _try(self, plan: BatchPlan, how: dict[str, Any]) -> BatchResult | None:
        kept = None if self._module is None else KeptBuffers(self._module)
        try:
            return self._gradient.compute(plan, self._micro_batches, **how)
        except MicroBatchTooLargeError as error:
            if error.next_size is None or kept is None:
                raise
            kept.put_back()
            self.shortages.append(error.with_traceback(None))  # which holds what did not fit
            return None

    def _lower(self, samples_seen: int) -> None:
        size = self.shortages[-1].next_size
        assert size is not None
        self._replan(size)
        self._micro_batches = self._loader.micro_batches(samples_seen, self._steps_left)

    def _replan(self, size: int) -> None:
        self.ramp = self.ramp.capped(size)
        self._loader.replan(self.ramp)

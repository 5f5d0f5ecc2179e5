"""Instruments go around the gradient of a step: they measure something, or keep something in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from largebatch.gradient.step import Step, Weight


class Instrument(Protocol):
    """Around the passes and the reduction of those steps in which it is due."""

    def is_due(self, step: Step) -> bool:
        """Whether it takes part: a function of the step and of how the run was made, so the same on every rank."""

    def around(
        self, step: Step, parts: Iterator[Any], weight: Weight
    ) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """Enters before the first pass and leaves when `.grad` is that of the global batch, unless the step fails.

        Args:
            step: the one that is taken.
            parts: this rank's micro-batches. What is entered with are the same ones, perhaps looked at on their way.
            weight: the factor of the loss sum.
        """


class BeingComputed:
    """An instrument that knows which micro-batches are being computed: for whoever has to tell what failed.

    Args:
        together: they depend on each other, so that all of a step are computed at once.

    Attributes:
        parts: one, or all of the step so far; none while one is loaded.
    """

    def __init__(self, *, together: bool) -> None:
        self.parts: list[Any] = []
        self._together = together

    def is_due(self, step: Step) -> bool:
        """In every step."""
        return True

    @contextlib.contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        self.parts.clear()
        yield self._noted(parts)
        self.parts.clear()

    def _noted(self, parts: Iterator[Any]) -> Iterator[Any]:
        for part in parts:
            self.parts.append(part)
            yield part
            if not self._together:
                self.parts.clear()

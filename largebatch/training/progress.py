"""The position of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """The position of a run. `samples_seen` says everything; `step` is its count in optimizer steps.

    The exception is a batch that grows by what its run measures: its decisions say how the position was reached, see
    `GrowthObserver`.

    `train_s` is the time of the `timed_steps` steps that this process has made, observers left out. On a GPU the latest
    ones are still to come, see `StepClock`.
    """

    step: int = 0
    samples_seen: int = 0
    train_s: float = 0.0
    timed_steps: int = 0

    def advance(self, global_batch_size: int) -> None:
        """One step further."""
        self.step += 1
        self.samples_seen += global_batch_size

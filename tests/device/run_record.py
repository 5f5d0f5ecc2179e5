"""What a run on fake GPUs has done, step by step: plain values, so that they travel between processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """What was counted over some time on one rank.

    Attributes:
        waits: kind and place -> how often the host waited for the device.
        late_reads: kind and place -> events that were waited for with enough kernels queued behind them.
        copies: kind and place -> bytes from host to device.
        collectives: in their order, operation and bytes, as "allreduce_ 4096".
        kernels: operation -> launches; a foreach call counts once.
        launches: kernels, copies and collectives.
        peak: most bytes of CUDA tensors at a time.
    """

    waits: Counter[str] = field(default_factory=Counter)
    late_reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    collectives: list[str] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    peak: int = 0


@dataclass
class StepCounts(Counts):
    """Counts of a step, the observers after it included.

    Attributes:
        number: of the step, from 1.
        is_logged: whether it has a row in metrics.jsonl.
    """

    number: int = 0
    is_logged: bool = False


@dataclass
class RunRecord:
    """A run.

    Attributes:
        start: before the first step.
        steps: all but the last, whose observers belong to `end`.
        end: what came after the update of the last step: its observers, the last evaluation and checkpoint.
        problems: operations that CUDA would refuse or that are a race, each with its place.
        said: objects that rank 0 broadcast.
        rows: of metrics.jsonl, on rank 0.
        agreed: what this rank put into the sum after a step: whether it asks for a stop, for a checkpoint, seconds per
            step, and the step at its own place.
        kernel_s: time of a kernel.
    """

    start: Counts
    steps: list[StepCounts]
    end: Counts
    problems: list[str]
    said: list[list[Any]]
    rows: list[dict[str, Any]]
    agreed: list[list[float]]
    kernel_s: float

    def plain(self, after: int = 3) -> list[StepCounts]:
        """Steps without a row, once the first `after` steps have set everything up."""
        return [step for step in self.steps if not step.is_logged and step.number > after]

    def logged(self, after: int = 3) -> list[StepCounts]:
        """Steps with a row, once everything is set up."""
        return [step for step in self.steps if step.is_logged and step.number > after]

    @property
    def collectives(self) -> list[str]:
        """Of the whole run, in their order."""
        return [one for part in (self.start, *self.steps, self.end) for one in part.collectives]

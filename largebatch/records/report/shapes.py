"""How a batch is cut up: what the time of a step and the memory of a process depend on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.records.report.evidence import RunRecord


@dataclass(frozen=True)
class Shape:
    """One rank's part of a global batch.

    Attributes:
        samples: of a rank per step, on the rank with the most.
        micro_batches: that they are computed in.
        micro_batch_size: of the largest one.
    """

    samples: int
    micro_batches: int
    micro_batch_size: int

    @property
    def time_terms(self) -> tuple[float, float, float]:
        """Terms of the time of a step: per micro-batch, per step, per sample."""
        return float(self.micro_batches), 1.0, float(self.samples)

    @property
    def memory_terms(self) -> tuple[float, float]:
        """Terms of the memory of a process: of the process, per sample of a micro-batch."""
        return 1.0, float(self.micro_batch_size)


def shape_of(global_batch_size: int, ranks: int, most: int | None) -> Shape:
    """The largest rank's part of a batch with micro-batches of `most` samples at most; None: without a limit.

    >>> shape_of(100, 2, 16), shape_of(100, 2, None)
    (Shape(samples=50, micro_batches=4, micro_batch_size=16), Shape(samples=50, micro_batches=1, micro_batch_size=50))
    """
    samples = -(-global_batch_size // ranks)
    micro = min(samples, most or samples)
    return Shape(samples, -(-samples // micro), micro)


def shape_of_run(run: RunRecord) -> Shape:
    """As its plan has it."""
    shape = shape_of(run.global_batch_size, run.world_size, run.plan.get("max_micro_batch_size"))
    count = int(run.plan.get("grad_accum_steps") or shape.micro_batches)
    return Shape(shape.samples, count, run.micro_batch_size or shape.micro_batch_size)


def micro_batch_limit(runs: Sequence[RunRecord]) -> int | None:
    """The most samples of a micro-batch in another run of this kind; None: there is no limit.

    It is what the configs of the runs say, if they agree; else the largest micro-batch of all.
    """
    given = {run.settings.get("batch.micro", "None") for run in runs}
    given = given if given != {"None"} else {run.settings.get("batch.max_micro", "") for run in runs}
    (limit,) = given if len(given) == 1 else ("",)
    if limit == "None":
        return None
    if limit.isdecimal() and int(limit) > 0:
        return int(limit)
    return max(run.micro_batch_size or run.global_batch_size for run in runs)


def usual_ranks(runs: Sequence[RunRecord]) -> int:
    """The most common number of processes."""
    return statistics.mode(run.world_size for run in runs)

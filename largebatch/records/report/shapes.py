"""How the batches of runs were cut up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from largebatch.diagnostics.predictions.shape import Shape, shape_of
from largebatch.records.report.evidence import RunRecord


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

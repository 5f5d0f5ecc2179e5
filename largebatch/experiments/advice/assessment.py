"""The quantities of the planned run at the candidates: those of the report's explorer, and a predicted memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from largebatch.experiments.advice.planned import Planned, PlannedMemory, matching
from largebatch.records.report.batches import Difference, Quality, quality_of, worse_than_smallest
from largebatch.records.report.critical_evidence import CriticalBatch, critical_batches
from largebatch.records.report.estimates import EXACT, NONE, NOTHING, Estimate, Quantity, no_quantity
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group
from largebatch.records.report.quantities import quantities
from largebatch.records.report.shapes import usual_ranks

PREDICTED = "predicted"
_PER_SIDE = 2  # candidates below and above the batch of the config
_GIB = 2**30


@dataclass(frozen=True)
class Assessment:
    """All that is known of a planned run at several batch sizes.

    Attributes:
        planned: the run.
        sizes: the candidates, ascending.
        group: the runs that are evidence.
        evidence: these and the records.
        quantities: by key; one without evidence says why.
        critical: what is known of the critical batch, the best first.
        quality: the metric by which ends are compared; None: there is none.
        worse: candidate or other measured size -> how much worse it ends than the smallest one measured.
    """

    planned: Planned
    sizes: list[int]
    group: Group
    evidence: Evidence
    quantities: dict[str, Quantity]
    critical: list[CriticalBatch]
    quality: Quality | None
    worse: dict[int, Difference]

    def at(self, key: str, size: int) -> Estimate:
        """A quantity at a batch size."""
        return self.quantities[key].at(size) if key in self.quantities else NOTHING

    @property
    def smallest_compared(self) -> int | None:
        """The batch size against which `worse` compares."""
        return next(iter(self.group.furthest.by_batch), None)


def assess(evidence: Evidence, planned: Planned, sizes: Sequence[int] | None) -> Assessment:
    """Put the evidence to the planned run.

    Args:
        evidence: as read, of any runs and records.
        planned: the run.
        sizes: candidates; None: `default_sizes`.
    """
    group, kept = matching(evidence, planned)
    found = {one.key: one for one in quantities(group, kept, is_only=True, cost=planned.cost)}
    found["iterations"] = _iterations(planned)
    if planned.memory is not None and found["memory"].at(planned.batch).kind == NONE:
        found["memory"] = _predicted_memory(planned, planned.memory)
    timed = [run for run in group.runs if run.step_s]
    if timed and (ranks := usual_ranks(timed)) != planned.world_size:
        found["exposed_communication"] = _of_other_ranks(ranks, planned.world_size)
    quality = quality_of(group.furthest)
    worse = worse_than_smallest(group.furthest, quality) if quality and group.furthest.by_batch else {}
    candidates = sorted(set(sizes)) if sizes else default_sizes(planned.batch, planned.num_samples)
    return Assessment(
        planned, candidates, group, kept, found, critical_batches(group, kept, is_only=True), quality, worse
    )


def default_sizes(batch: int, num_samples: int) -> list[int]:
    """Two halvings and two doublings of the batch, as far as they fit the set.

    >>> default_sizes(64, 1000), default_sizes(3, 1000), default_sizes(718, 1437)
    ([16, 32, 64, 128, 256], [1, 3, 6, 12], [179, 359, 718, 1436])
    """
    scaled = [batch // 2**power for power in range(_PER_SIDE, 0, -1)] + [
        batch * 2**power for power in range(_PER_SIDE + 1)
    ]
    return sorted({size for size in scaled if 1 <= size <= num_samples})


def _of_other_ranks(ranks: int, planned_ranks: int) -> Quantity:
    on = f"{ranks} process{'es' * (ranks > 1)}"
    if planned_ranks == 1:
        why = f"the runs were on {on}, and the plan has one, which sends nothing"
    else:
        why = f"the runs were on {on}, and the plan has {planned_ranks}"
    return no_quantity("exposed_communication", "exposed communication of a step", "s", why)


def _iterations(planned: Planned) -> Quantity:
    count = planned.num_samples
    return Quantity(
        "iterations", "steps per epoch", "steps", f"{count:,} training samples / batch size",
        lambda size: Estimate(count / size, kind=EXACT), {}, log=True,
    )  # fmt: skip


def _predicted_memory(planned: Planned, memory: PlannedMemory) -> Quantity:
    """Of tensors without numbers; a line through two micro-batches where another one is asked for."""

    def at(size: int) -> Estimate:
        micro = min(math.ceil(size / planned.world_size), planned.max_micro)
        peak = memory.peak + memory.per_sample * (micro - memory.micro_batch_size)
        if memory.outside is None:
            return Estimate(peak / _GIB, kind=PREDICTED)
        more, factor = memory.outside
        return Estimate(peak / _GIB, peak / _GIB, (factor * peak + more) / _GIB, PREDICTED)

    beside = "" if memory.outside is None else "; the upper end adds what is not tensors and fragmentation"
    how = "by steps without numbers (plan.memory), at other micro-batches by a line"
    source = f"predicted for {memory.device} {how}{beside}"
    return Quantity("memory", "peak memory of a process", "GiB", source, at, {})

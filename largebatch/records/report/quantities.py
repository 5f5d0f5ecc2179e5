"""The quantities of the batch-size explorer, each from measurements of these runs, or without evidence."""

from __future__ import annotations

from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.diagnostics.predictions.positive_law import fit_positive_law
from largebatch.diagnostics.predictions.shape import shape_of
from largebatch.records.report.batches import ACCURACY, ACCURACY_GAP, LOSS, LOSS_GAP, Quality, outcome
from largebatch.records.report.cost_quantities import cost_quantities
from largebatch.records.report.estimates import (
    EXACT,
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    NOTHING,
    Estimate,
    Quantity,
    between,
    count_of,
    kind_of,
    known_end,
    no_quantity,
    spread,
)
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group
from largebatch.records.report.noise_quantities import noise_quantities
from largebatch.records.report.shapes import micro_batch_limit, shape_of_run, usual_ranks
from largebatch.records.report.target_quantities import target_quantities
from largebatch.records.report.time_quantities import time_quantities

_GIB = 2**30


def quantities(group: Group, evidence: Evidence, *, is_only: bool, cost: CostConfig | None = None) -> list[Quantity]:
    """The quantities of one task and optimizer.

    Args:
        group: the runs.
        evidence: all that was read: measurements of weights, studies.
        is_only: whether there is no other group that a measurement or study could belong to.
        cost: what a device costs; None: what the configs of the runs say.
    """
    times = time_quantities(group, evidence, is_only=is_only)
    noise = noise_quantities(group, evidence, is_only=is_only)
    targets = target_quantities(group, evidence, is_only=is_only)
    costs = cost_quantities(group, {one.key: one for one in (*times, *targets)}, cost)
    found = [_iterations(group), *times, *noise, *targets, _memory(group), *costs]
    if not group.study:  # whose runs end at its target
        found += [_outcome(group.furthest, quality) for quality in (ACCURACY, LOSS, ACCURACY_GAP, LOSS_GAP)]
    return [one for one in found if one]


def _iterations(group: Group) -> Quantity | None:
    counts = {run.num_samples for run in group.runs if run.num_samples}
    if len(counts) != 1:
        return None
    (count,) = counts
    return Quantity(
        "iterations", "iterations per epoch", "steps", f"{count:,} training samples / batch size",
        lambda size: Estimate(count / size, kind=EXACT), {}, log=True,
    )  # fmt: skip


def _memory(group: Group) -> Quantity:
    """Memory follows the micro-batch, not the batch: accumulation and more processes leave it unchanged."""
    label, unit, key = "peak memory of a process", "GiB", "memory/peak_bytes"
    known = [run for run in group.runs if run.last(key) and run.micro_batch_size]
    if not known:
        return no_quantity("memory", label, unit, "not measured: no run has memory/peak_bytes in its metrics")
    ranks, limit = usual_ranks(known), micro_batch_limit(known)
    known = [run for run in known if run.world_size == ranks]
    micros = sorted({run.micro_batch_size or 1 for run in known})
    law = fit_positive_law([shape_of_run(run).memory_terms for run in known],
                           [(run.last(key) or 0.0) / _GIB for run in known])  # fmt: skip
    sizes = [run.global_batch_size for run in known]

    def at(size: int) -> Estimate:
        shape = shape_of(size, ranks, limit)
        if len(micros) == 1 and shape.micro_batch_size != micros[0]:
            return NOTHING  # one size does not tell what grows with it
        found, kind = law.at(shape.memory_terms), kind_of(size, sizes)
        if kind != MEASURED:  # a larger batch of as large micro-batches is beyond, too
            kind = INTERPOLATED if kind == INTERPOLATED and shape.micro_batch_size <= micros[-1] else EXTRAPOLATED
        return Estimate(found.value, known_end(found.low), known_end(found.high), kind)

    limited = "a rank's whole share" if limit is None else f"{limit} at most"
    source = (
        f"{count_of(known)} with micro-batches of {', '.join(map(str, micros))}: a part for the process and a part per "
        f"sample of a micro-batch, here of {limited}; the interval is for one more run. On a CPU of the whole process, "
        "on a GPU of tensors"
    )
    measured = {size: spread([(run.last(key) or 0.0) / _GIB for run in known if run.global_batch_size == size])
                for size in sorted(set(sizes))}  # fmt: skip
    return Quantity("memory", label, unit, source, at, measured)


def _outcome(group: Group, quality: Quality) -> Quantity | None:
    found = {size: outcome(runs, quality) for size, runs in group.by_batch.items()}
    known = {size: one for size, one in found.items() if one}
    if not known:
        return None
    source = (
        f"the end of {count_of([run for size in known for run in group.by_batch[size]])}, one value per seed; linear "
        "in log B between them"
    )
    return Quantity(quality.key.replace("/", "_"), quality.label, quality.unit, source, between(known), known)

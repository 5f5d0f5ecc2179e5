"""The quantities of the batch-size explorer, each from measurements of these runs, or without evidence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.batches import ACCURACY, ACCURACY_GAP, LOSS, LOSS_GAP, Quality, outcome
from largebatch.records.report.estimates import (
    EXACT,
    MEASURED,
    NOTHING,
    AtBatch,
    Estimate,
    Quantity,
    between,
    count_of,
    fit_step_times,
    kind_of,
    known_end,
    no_quantity,
    scaled,
    spread,
)
from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.noise_quantities import noise_quantities

_GIB = 2**30


def quantities(group: Group, evidence: Evidence, *, is_only: bool) -> list[Quantity]:
    """The quantities of one task and optimizer.

    Args:
        group: the runs.
        evidence: all that was read: measurements of weights, studies.
        is_only: whether there is no other group that a measurement or study could belong to.
    """
    found = [_iterations(group), *_times(group), *noise_quantities(group, evidence, is_only=is_only), _memory(group)]
    if not group.study:  # whose runs end at its target
        found += [_outcome(group, quality) for quality in (ACCURACY, LOSS, ACCURACY_GAP, LOSS_GAP)]
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


def _times(group: Group) -> list[Quantity]:
    """Time of a step and of an epoch, from the runs with the most common number of processes."""
    timed = [run for run in group.runs if run.step_s]
    if not timed:
        return [no_quantity("step_time", "time of a step", "s", "no run has time/step_s in its metrics")]
    ranks = statistics.mode(run.world_size for run in timed)
    timed = [run for run in timed if run.world_size == ranks]
    points = {
        size: spread([run.step_s or 0.0 for run in timed if run.global_batch_size == size])
        for size in sorted({run.global_batch_size for run in timed})
    }
    seconds = [run.step_s or 0.0 for run in timed]
    on = f"{ranks} {'process' if ranks == 1 else 'processes'}"
    fit = fit_step_times([run.global_batch_size for run in timed], seconds)
    if fit:
        at: AtBatch = fit.at
        line = f"{1e3 * fit.fixed:.3g} ms + {1e6 * fit.per_sample:.3g} µs per sample"
        source = f"line through {len(timed)} runs on {on}: {line}"
    else:
        at, source = _from_one_size(timed, on)
    found = [Quantity("step_time", "time of a step", "s", source, at, points, log=True)]
    counts = {run.num_samples for run in group.runs}
    if len(counts) == 1 and (count := counts.pop()):
        epochs = {size: _times_exact(one, count / size) for size, one in points.items()}
        source = f"{source}; times iterations per epoch"
        found.append(
            Quantity(
                "epoch_time", "time of an epoch", "s", source, scaled(at, lambda size: count / size), epochs, log=True
            )
        )
    return found


def _from_one_size(runs: Sequence[RunRecord], on: str) -> tuple[AtBatch, str]:
    """Compute and data grow with the batch, communication does not: an assumption where there is one batch size."""
    size, whole = runs[0].global_batch_size, spread([run.step_s or 0.0 for run in runs])
    communication = statistics.median(run.last("time/communication_s") or 0.0 for run in runs)
    per_sample = max(whole.value - communication, 0.0) / size

    def at(other: int) -> Estimate:
        if other == size:
            return Estimate(whole.value, known_end(whole.low), known_end(whole.high), MEASURED)
        return Estimate(communication + per_sample * other, kind=kind_of(other, [size]))

    return at, (
        f"one batch size on {on}: {1e6 * per_sample:.3g} µs per sample + {1e3 * communication:.3g} ms communication; "
        "that the first grows with the batch and the second does not is assumed"
    )


def _memory(group: Group) -> Quantity:
    """Memory follows the micro-batch, not the batch: accumulation and more processes leave it unchanged."""
    label, unit, key = "peak memory of a process", "GiB", "memory/peak_bytes"
    known = [run for run in group.runs if run.last(key) and run.micro_batch_size]
    by_micro: dict[int, list[float]] = {}
    for run in known:
        by_micro.setdefault(run.micro_batch_size or 0, []).append((run.last(key) or 0.0) / _GIB)
    if not known:
        return no_quantity("memory", label, unit, "not measured: no run has memory/peak_bytes in its metrics")
    points = {micro: spread(values) for micro, values in by_micro.items()}
    ranks = statistics.mode(run.world_size for run in known)
    most = max(int(run.plan.get("max_micro_batch_size") or run.micro_batch_size or 1) for run in known)
    inside = between(points)
    sizes = [run.global_batch_size for run in known]

    def at(size: int) -> Estimate:
        found = inside(min(-(-size // ranks), most))
        if found.value is None:
            return NOTHING
        kind = kind_of(size, sizes)
        return Estimate(found.value, found.low, found.high, kind)

    source = (
        f"{count_of(known)} with micro-batches of {', '.join(map(str, sorted(points)))}; larger batches are "
        f"accumulated from micro-batches of {most} at most and take as much. On a CPU of the whole process, "
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


def _times_exact(one: Interval, factor: float) -> Interval:
    return Interval(one.value * factor, one.low * factor, one.high * factor)

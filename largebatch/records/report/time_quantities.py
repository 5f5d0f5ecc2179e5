"""Time of a step, of an epoch and of communication in another run, from runs on as many processes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from largebatch.diagnostics.communication.costs import TransferFit
from largebatch.diagnostics.communication.prediction import predict_step
from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.positive_law import PositiveLaw, fit_positive_law
from largebatch.diagnostics.predictions.shape import shape_of
from largebatch.records.report.estimates import (
    EXACT,
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    Estimate,
    Quantity,
    count_of,
    kind_of,
    known_end,
    no_quantity,
    scaled,
    spread,
)
from largebatch.records.report.evidence import Evidence, JsonRecord, RunRecord
from largebatch.records.report.groups import Group
from largebatch.records.report.shapes import micro_batch_limit, shape_of_run, usual_ranks

_ONE_MORE = "the interval is for one more run; "


def time_quantities(group: Group, evidence: Evidence, *, is_only: bool) -> list[Quantity]:
    """`step_time`, `epoch_time` and `exposed_communication`; arguments as of `quantities`."""
    timed = [run for run in group.runs if run.step_s]
    if not timed:
        reason = "no run has time/step_s in its metrics: train with observers.metrics.every=10"
        return [
            no_quantity("step_time", "time of a step", "s", reason),
            no_quantity("epoch_time", "time of an epoch", "s", reason),
            no_quantity("exposed_communication", "exposed communication of a step", "s", reason),
        ]
    ranks = usual_ranks(timed)
    timed = [run for run in timed if run.world_size == ranks]
    step = _step_time(timed, ranks)
    records = [one for one in evidence.of("communication") if is_only]
    return [step, epoch_time(group, step), _exposed(timed, ranks, records)]


def _step_time(timed: Sequence[RunRecord], ranks: int) -> Quantity:
    seconds = [run.step_s or 0.0 for run in timed]
    sizes = sorted({run.global_batch_size for run in timed})
    points = {size: spread([run.step_s or 0.0 for run in timed if run.global_batch_size == size]) for size in sizes}
    limit = micro_batch_limit(timed)
    shapes = [shape_of_run(run).time_terms for run in timed]
    # Of one batch size the communication is known to be no computation, which alone may grow with the batch.
    fixed = _median_communication(timed) if len(set(shapes)) == 1 else 0.0
    fixed = fixed if fixed < min(seconds) else 0.0
    law = fit_positive_law(shapes, [one - fixed for one in seconds])

    def at(size: int) -> Estimate:
        found = law.at(shape_of(size, ranks, limit).time_terms)
        kind = kind_of(size, sizes)
        # Not the same as measured: at a measured size the law passes beside the point.
        kind = INTERPOLATED if kind == MEASURED and len(sizes) > 1 else kind
        return Estimate(found.value + fixed, known_end(found.low + fixed), known_end(found.high + fixed), kind)

    on = f"{ranks} {'process' if ranks == 1 else 'processes'}"
    source = f"{count_of(timed)} on {on}: {_shown(law, fixed)}; {_ONE_MORE}{_doubt(law)}"
    return Quantity("step_time", "time of a step", "s", source, at, points, log=True)


def _shown(law: PositiveLaw, fixed: float) -> str:
    names = (("ms per micro-batch", 1e3), ("ms per step", 1e3), ("µs per sample", 1e6))
    parts = [
        f"{factor * amount:.3g} {name}" for (name, factor), amount in zip(names, law.amounts, strict=True) if amount
    ]
    return " + ".join([*parts, *([f"{1e3 * fixed:.3g} ms communication"] if fixed else [])])


def _doubt(law: PositiveLaw) -> str:
    is_open = len(law.laws) > 1
    if not law.spreads:
        assumed = "that the time grows so is assumed, and " if is_open else ""
        return f"{assumed}it is not known: as many runs as parts of the time. Repeat one of them with another seed"
    if not is_open:
        return "Student's t on the logarithm"
    return "it holds whatever is fixed and whatever grows, which these runs do not tell: add one of another batch size"


def epoch_time(group: Group, step: Quantity) -> Quantity:
    """Time of a step times the steps of an epoch, which are known exactly."""
    counts = {run.num_samples for run in group.runs}
    if len(counts) != 1 or not (count := counts.pop()):
        reason = "the runs had training sets of different or unknown sizes. Report runs of one data set"
        return no_quantity("epoch_time", "time of an epoch", "s", reason)
    points = {
        size: Interval(*(count / size * end for end in (one.value, one.low, one.high)))
        for size, one in step.measured.items()
    }
    at = scaled(step.at, lambda size: count / size)
    source = f"{step.source}; times iterations per epoch"
    return Quantity("epoch_time", "time of an epoch", "s", source, at, points, log=True)


def _median_communication(runs: Sequence[RunRecord]) -> float:
    return statistics.median(exposed_of(run) or 0.0 for run in runs)


def exposed_of(run: RunRecord) -> float | None:
    """Median of the exposed communication of its rows, without the first one; None where none was measured."""
    times = [value for value in run.column("time/communication_s").values.tolist() if math.isfinite(value)]
    return statistics.median(times[1:] or times) if times else None


def _exposed(timed: Sequence[RunRecord], ranks: int, records: Sequence[JsonRecord]) -> Quantity:
    """Communication that no computation hides, in seconds per step."""
    key, label, unit = "exposed_communication", "exposed communication of a step", "s"
    if ranks == 1:
        return Quantity(key, label, unit, "one process sends nothing", lambda size: Estimate(0.0, kind=EXACT), {})
    known = [(run, value) for run in timed if (value := exposed_of(run)) is not None and value > 0]
    if known:
        sizes = sorted({run.global_batch_size for run, _ in known})
        law = fit_positive_law([[1.0]] * len(known), [value for _, value in known]).at([1.0])
        points = {size: spread([value for run, value in known if run.global_batch_size == size]) for size in sizes}

        def at(size: int) -> Estimate:
            kind = kind_of(size, sizes)
            return Estimate(law.value, known_end(law.low), known_end(law.high), kind)

        source = f"rows of {count_of([one for one, _ in known])} on {ranks} processes, waits for slower ranks included"
        return Quantity(key, label, unit, f"{source}; taken as the same at every batch size", at, points)
    for record in records:
        if (found := exposed_on(record.result.numbers, ranks)) is not None:
            source = f"measure communication in {record.name}, from latency and bandwidth, without slower ranks"
            return Quantity(key, label, unit, source, partial(_whatever_size, found), {})
    reason = "no run has it. Run `largebatch measure communication` on 2 or more processes"
    return no_quantity(key, label, unit, reason)


def _whatever_size(found: Estimate, size: int) -> Estimate:
    return found


def exposed_on(numbers: Mapping[str, Any], ranks: int) -> Estimate | None:
    """Exposed communication of a step on a number of ranks, from the record of `measure communication`.

    The interval is that of latency and bandwidth: exposed time grows with both. It leaves out waits for slower ranks.

    Returns:
        None if the record has no bandwidth, or is none.
    """
    try:
        fit, steps = numbers["fit"], numbers["steps"]
        lines = [
            (float(fit["latency_s"]), float(fit["s_per_byte"])),
            *(
                (max(float(fit["latency_interval"][end]), 0.0), max(float(fit["s_per_byte_interval"][end]), 0.0))
                for end in (0, 1)
            ),
        ]
        sizes, leads = list(map(int, steps["num_bytes"])), list(map(float, steps["lead_s"]))
        measured, computing = int(numbers["ranks"]), float(numbers["medians"]["step_without"]["value"])
        if fit["bandwidth_bytes_per_s"] is None or measured < 2 or ranks < 2:
            return None
        value, low, high = (
            predict_step(
                TransferFit(latency, per_byte, (latency, latency), (per_byte, per_byte)),
                measured_ranks=measured,
                num_ranks=ranks,
                num_bytes=sizes,
                lead_s=leads,
                computing_s=computing,
            ).exposed_s
            for latency, per_byte in lines
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return Estimate(value, low, high, EXTRAPOLATED if ranks != measured else INTERPOLATED)

"""`largebatch measure communication`: the cost of the gradient all-reduce per step, on these ranks."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from largebatch.diagnostics import TransferFit, probe_sizes
from largebatch.diagnostics.communication.all_reduces import ProbeTimes, time_all_reduces
from largebatch.diagnostics.communication.prediction import StepPrediction, predict_step
from largebatch.diagnostics.communication.steps import StepTimes, time_steps
from largebatch.diagnostics.intervals import median_interval
from largebatch.experiments.measure.weights import Measurement, NotMeasurableError, Weights
from largebatch.gradient.choices import Ability
from largebatch.records.figures.communication_figures import step_figure, transfer_figure
from largebatch.records.figures.figure import Figure
from largebatch.records.result import Result, Table
from largebatch.run.checks.machine import communication_problems
from largebatch.run.config.combinations import refusals
from largebatch.run.config.measure import MeasureConfig
from largebatch.run.parts import build_loader, build_run, own_copy
from largebatch.run.prepare import Prepared

Rows = list[tuple[str, str, str, str]]
_MB = 1e6


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check the settings; returns the measurement.

    Raises:
        NotMeasurableError: on a single process, or if DDP does not all-reduce the gradient.
    """
    what = "measure communication"
    problems = communication_problems(world_size=prepared.numbers.plan.world_size, what=what)
    if problems := [*problems, *refusals(what, Ability.OVERLAP, prepared.config, prepared.loss)]:
        raise NotMeasurableError(problems)

    def measure(weights: Weights) -> Result | None:
        steps = _time_steps(prepared, weights, pairs=options.communication.pairs)
        sizes = probe_sizes(max(steps.num_bytes), options.communication.sizes)
        probe = time_all_reduces(weights.runtime, sizes, repetitions=options.communication.repetitions)
        if not weights.runtime.is_main:
            return None
        return _result(prepared, options, weights, steps, probe)

    return measure


def _time_steps(prepared: Prepared, weights: Weights, *, pairs: int) -> StepTimes:
    """Time steps of a copy: other measurements need the weights as they are."""
    own, runtime, batch_plan = own_copy(prepared), weights.runtime, prepared.numbers.plan
    loader = build_loader(own, runtime.rank, plan=batch_plan, num_workers=0)
    count = len(batch_plan.micro_batches(runtime.rank))
    micro_batches = list(itertools.islice(loader.micro_batches(0, 1), count))
    run = build_run(own, runtime, loader, plan=batch_plan)
    return time_steps(runtime, run.model, run.gradient, run.optimizer, micro_batches, plan=batch_plan, pairs=pairs)


@dataclasses.dataclass(frozen=True)
class _Median:
    """A median over pairs of steps with its 95 % interval, in seconds or as a share."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Median:
        return cls(statistics.median(values), *median_interval(sorted(values)))

    def cells(self, unit: str = "ms") -> tuple[str, str]:
        factor = {"ms": 1e3, "%": 1e2}[unit]
        return f"{factor * self.value:.4g} {unit}", f"{factor * self.low:.4g} to {factor * self.high:.4g}"


def _medians(steps: StepTimes) -> dict[str, _Median]:
    differences = [one - other for one, other in zip(steps.with_s, steps.without_s, strict=True)]
    return {
        "step_without": _Median.of(steps.without_s),
        "step_with": _Median.of(steps.with_s),
        "difference": _Median.of(differences),
        "share": _Median.of([one / whole for one, whole in zip(differences, steps.with_s, strict=True)]),
        "exposed": _Median.of([one.exposed_s for one in steps.communication]),
        "total": _Median.of([one.total_s for one in steps.communication]),
        "hidden_share": _Median.of([one.hidden_share for one in steps.communication]),
        "skew": _Median.of([one.straggler_wait_s for one in steps.communication]),
    }


def _rows(found: dict[str, _Median], steps: StepTimes, fit: TransferFit, num_ranks: int) -> Rows:
    """(what, value, 95 % interval, meaning) as shown."""
    meanings = {
        "step_without": ("step without communication", "ms", "gradient and update, until the slowest rank is done; "
                         "data not counted"),
        "step_with": ("step with it", "ms", "the same, with all-reduces of the gradient"),
        "difference": ("difference", "ms", "cost of communication per step, slowed computation included"),
        "share": ("share of step", "%", "the difference over the step with communication"),
        "exposed": ("exposed", "ms", "communication after the last gradient of the slowest rank, by the ranks' clocks"),
        "total": ("total", "ms", "time in which parts of the gradient are reduced, hidden or not"),
        "hidden_share": ("hidden", "%", "share of the total that overlaps computation"),
        "skew": ("skew", "ms", "wait of the fastest rank for the slowest; no network time"),
    }  # fmt: skip
    rows = [(name, *found[key].cells(unit), meaning) for key, (name, unit, meaning) in meanings.items()]
    return rows + _fit_rows(steps, fit, num_ranks)


def _fit_rows(steps: StepTimes, fit: TransferFit, num_ranks: int) -> Rows:
    low, high = (1e6 * one for one in fit.latency_interval)
    latency = (
        "latency",
        f"{1e6 * fit.latency_s:.4g} us",
        f"{low:.4g} to {high:.4g}",
        "an undisturbed all-reduce (fit to lower quartiles)",
    )
    count, size = len(steps.num_bytes), f"{sum(steps.num_bytes) / _MB:.4g} MB"
    parts = "at once" if count == 1 else f"in {count} parts one after another"
    if fit.bandwidth is None or fit.bandwidth_interval is None:
        remedy = "larger all-reduces do not measurably take longer: raise measure.communication.repetitions"
        return [latency, ("bandwidth", "not enough evidence", "", remedy)]
    slow, fast = (one / _MB for one in fit.bandwidth_interval)
    message_s, link_s_per_byte = fit.ring(num_ranks)
    return [
        latency,
        ("bandwidth", f"{fit.bandwidth / _MB:.4g} MB/s", f"{slow:.4g} to {fast:.4g}",
         "bytes of a gradient per second beyond the latency, by the same fit"),
        ("ring", f"{1 / link_s_per_byte / _MB:.4g} MB/s", "",
         f"over each link, and {1e6 * message_s:.3g} us per message, if the all-reduce is a ring of {num_ranks} ranks: "
         "2 (p - 1) messages of n / p bytes (Patarasuk and Yuan 2009)"),
        ("predicted", f"{1000 * fit.seconds(steps.num_bytes):.4g} ms", "", f"by the fit: {size} {parts}"),
    ]  # fmt: skip


def _result(
    prepared: Prepared, options: MeasureConfig, weights: Weights, steps: StepTimes, probe: ProbeTimes
) -> Result:
    found, fit, batch = _medians(steps), probe.fit, prepared.numbers.plan
    num_ranks, name = weights.runtime.world_size, prepared.config.shown_name
    predicted = _predicted(options, steps, found, fit, num_ranks)
    title = f"communication of {num_ranks} ranks, batch {batch.global_batch_size} in {weights.runtime.precision}"
    share, interval = found["share"].cells("%")
    hidden, _ = found["hidden_share"].cells("%")
    return Result(
        title="Communication",
        sentences=[
            f"Communication takes {share} of a step (95 %: {interval}).",
            f"Computation hides {hidden} of the time in which gradients are reduced.",
        ],
        tables=[
            Table(title, ("what", "value", "95 %", "meaning"), _rows(found, steps, fit, num_ranks)),
            *([_prediction_table(predicted, prepared)] if predicted else []),
        ],
        figures=_figures(steps, probe, found),
        numbers={
            "ranks": num_ranks,
            "medians": {key: dataclasses.asdict(value) for key, value in found.items()},
            "fit": _fit_record(fit, steps),
            "predicted": [dataclasses.asdict(one) for one in predicted],
            "all_reduces": dataclasses.asdict(probe),
            "steps": dataclasses.asdict(steps),
            "settings": options.model_dump(),
        },
        picture="communication.png",
        heading=f"{name}: {title}",
    )


def _predicted(
    options: MeasureConfig, steps: StepTimes, found: dict[str, _Median], fit: TransferFit, num_ranks: int
) -> list[StepPrediction]:
    if fit.bandwidth is None:
        return []
    return [
        predict_step(
            fit,
            measured_ranks=num_ranks,
            num_ranks=count,
            num_bytes=steps.num_bytes,
            lead_s=steps.lead_s,
            computing_s=found["step_without"].value,
        )
        for count in options.communication.ranks
    ]


def _prediction_table(predicted: Sequence[StepPrediction], prepared: Prepared) -> Table:
    """One row for each number of ranks."""
    batch = prepared.numbers.plan
    own = batch.global_batch_size / batch.world_size
    headers = ("ranks", "global batch", "all-reduces", "exposed", "step", "efficiency", "by")
    rows = [
        (
            f"{one.num_ranks:,}",
            f"{round(own * one.num_ranks):,}",
            f"{1e3 * one.total_s:.4g} ms",
            f"{1e3 * one.exposed_s:.4g} ms",
            f"{1e3 * one.step_s:.4g} ms",
            f"{one.efficiency:.0%}",
            one.algorithm,
        )
        for one in predicted
    ]
    return Table(f"predicted, {own:g} samples a rank, if all links are as the measured one", headers, rows)


def _figures(steps: StepTimes, probe: ProbeTimes, found: dict[str, _Median]) -> list[Figure]:
    rise = found["step_with"].value - found["step_without"].value
    rows = {
        "step without communication": {"step": found["step_without"].value},
        "step with it": {"step": found["step_without"].value, "difference": max(rise, 0.0)},
        "communication": {
            "hidden": found["total"].value * found["hidden_share"].value,
            "exposed": found["exposed"].value,
        },
    }
    seconds = (probe.median_s, probe.low_s, probe.high_s)
    return [transfer_figure(probe.num_bytes, seconds, probe.fit, steps.num_bytes), step_figure(rows)]


def _fit_record(fit: TransferFit, steps: StepTimes) -> dict[str, Any]:
    return dataclasses.asdict(fit) | {
        "bandwidth_bytes_per_s": fit.bandwidth,
        "predicted_s": fit.seconds(steps.num_bytes),
    }

"""Noise in the batch-size explorer: gradient variance, and noise over signal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from largebatch.diagnostics.intervals import Interval
from largebatch.records.report.estimates import Quantity, count_of, inverse_law, no_quantity, spread
from largebatch.records.report.evidence import Evidence, JsonRecord, RunRecord
from largebatch.records.report.groups import Group


def noise_quantities(group: Group, evidence: Evidence, *, is_only: bool) -> list[Quantity]:
    """Gradient variance, and noise over signal; arguments as of `quantities`."""
    variances = variances_of(group, evidence, is_only=is_only)
    return [_variance(group, variances), _relative_noise(group, variances)]


def variances_of(group: Group, evidence: Evidence, *, is_only: bool) -> list[JsonRecord]:
    """The records of `measure variance` that belong to a group."""
    return [one for one in evidence.of("variance") if is_only or is_of(one, group)]


def _variance(group: Group, variances: Sequence[JsonRecord]) -> Quantity:
    label, unit = "gradient variance of a batch, tr(Σ)/B", "squared gradient norm"
    for record in variances:
        moments = record.result.numbers.get("moments") or {}
        if isinstance(moments.get("trace"), (int, float)):
            curve = record.result.numbers["with_replacement"].get("points") or []
            points = {
                int(one["batch_size"]): Interval(one["variance"], *(one.get("interval") or (math.nan, math.nan)))
                for one in curve
            }
            amount = Interval(moments["trace"], *(moments.get("trace_interval") or (math.nan, math.nan)))
            return Quantity(
                "variance", label, unit, f"measure variance in {record.name}, continued by the 1/B law",
                inverse_law(amount, list(points)), points, log=True,
            )  # fmt: skip
    traces = [(run, value) for run in group.runs if (value := run.last("noise_scale/trace")) and value > 0]
    if not traces:
        return no_quantity("variance", label, unit, "neither measure variance nor observers.noise_scale was used")
    amount = spread([value for _, value in traces])
    sizes = noise_sizes([run for run, _ in traces])
    return Quantity(
        "variance", label, unit, f"tr(Σ) at the end of {count_of(traces)}, median and range, by the 1/B law",
        inverse_law(amount, sizes), {}, log=True,
    )  # fmt: skip


def measured_noise_scale(group: Group, variances: Sequence[JsonRecord]) -> tuple[Interval, str, list[int]] | None:
    """The noise scale in samples, with the envelope of the runs' intervals, as it differs between them."""
    found = [(run, scale) for run in group.runs if (scale := run.noise_scale)]
    if found:
        values = [one for _, one in found]
        whole = Interval(
            statistics.median(one.value for one in values),
            min(one.low for one in values),
            max(one.high for one in values),
        )
        return (
            whole,
            f"noise scale at the end of {count_of(found)}, envelope of the intervals",
            noise_sizes([run for run, _ in found]),
        )
    for record in variances:
        moments = record.result.numbers.get("moments") or {}
        if moments.get("noise_scale") is not None and moments.get("interval"):
            sizes = [int(one["batch_size"]) for one in record.result.numbers["with_replacement"].get("points") or []]
            return Interval(moments["noise_scale"], *moments["interval"]), f"measure variance in {record.name}", sizes
    return None


def _relative_noise(group: Group, variances: Sequence[JsonRecord]) -> Quantity:
    label, unit = "noise over signal of the gradient, B_noise/B", "ratio"
    found = measured_noise_scale(group, variances)
    if found is None:
        return no_quantity("relative_noise", label, unit, "no run has enough evidence for a noise scale")
    amount, source, sizes = found
    shown = f"{source}: {amount.value:,.0f} samples ({amount.low:,.0f} to {amount.high:,.0f})"
    return Quantity("relative_noise", label, unit, shown, inverse_law(amount, sizes), {}, log=True)


def is_of(record: JsonRecord, group: Group) -> bool:
    """Whether a record measured the weights of one of the group's runs."""
    if not record.checkpoint:
        return False
    path = Path(str(record.checkpoint)).resolve()
    return any(path.is_relative_to(run.folder.resolve()) for run in group.runs)


def noise_sizes(runs: Sequence[RunRecord]) -> list[int]:
    """The batch sizes at which the runs saw the noise: from the micro-batch to the batch."""
    return [size for run in runs for size in (run.micro_batch_size or run.global_batch_size, run.global_batch_size)]

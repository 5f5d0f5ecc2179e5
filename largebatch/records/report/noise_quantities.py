"""Noise and its consequences in the batch-size explorer: gradient variance, noise over signal, steps to a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.diagnostics.intervals import Interval
from largebatch.records.figures.optimizer_names import optimizer_name
from largebatch.records.report.estimates import Quantity, count_of, from_curve, inverse_law, no_quantity, spread
from largebatch.records.report.evidence import Evidence, JsonRecord, RunRecord
from largebatch.records.report.groups import Group


def noise_quantities(group: Group, evidence: Evidence, *, is_only: bool) -> list[Quantity]:
    """Gradient variance, noise over signal, and steps to a target; arguments as of `quantities`."""
    variances = [one for one in evidence.of("variance") if is_only or _is_of(one, group)]
    fit = _study_fit(group, evidence, is_only=is_only)
    return [_variance(group, variances), _relative_noise(group, variances), _steps(group, fit, variances)]


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
    sizes = _noise_sizes([run for run, _ in traces])
    return Quantity(
        "variance", label, unit, f"tr(Σ) at the end of {count_of(traces)}, median and range, by the 1/B law",
        inverse_law(amount, sizes), {}, log=True,
    )  # fmt: skip


def _noise_scale(group: Group, variances: Sequence[JsonRecord]) -> tuple[Interval, str, list[int]] | None:
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
            _noise_sizes([run for run, _ in found]),
        )
    for record in variances:
        moments = record.result.numbers.get("moments") or {}
        if moments.get("noise_scale") is not None and moments.get("interval"):
            sizes = [int(one["batch_size"]) for one in record.result.numbers["with_replacement"].get("points") or []]
            return Interval(moments["noise_scale"], *moments["interval"]), f"measure variance in {record.name}", sizes
    return None


def _relative_noise(group: Group, variances: Sequence[JsonRecord]) -> Quantity:
    label, unit = "noise over signal of the gradient, B_noise/B", "ratio"
    found = _noise_scale(group, variances)
    if found is None:
        return no_quantity("relative_noise", label, unit, "no run has enough evidence for a noise scale")
    amount, source, sizes = found
    shown = f"{source}: {amount.value:,.0f} samples ({amount.low:,.0f} to {amount.high:,.0f})"
    return Quantity("relative_noise", label, unit, shown, inverse_law(amount, sizes), {}, log=True)


def _steps(group: Group, fit: Mapping[str, Any] | None, variances: Sequence[JsonRecord]) -> Quantity:
    if fit is not None:
        s_min, b_crit = ((fit.get(key) or {}).get("value") for key in ("s_min", "b_crit"))
        at = from_curve(fit["curve"], s_min=s_min, b_crit=b_crit)
        doubt = "" if fit.get("supported", True) else f"; {fit.get('verdict', 'the points do not support it')}"
        return Quantity("steps", "steps to the target", "steps", f"the study's fit{doubt}", at, {}, log=True)
    label = "steps to a target over the fewest, 1 + B_noise/B"
    found = _noise_scale(group, variances)
    if found is None:
        return no_quantity("steps", label, "ratio", "neither a study nor a noise scale is known")
    amount, source, sizes = found
    shown = f"no study; by the model of McCandlish et al. 2018 from the {source}: an order of magnitude"
    return Quantity("steps", label, "ratio", shown, inverse_law(amount, sizes, plus=1.0), {}, log=True)


def _study_fit(group: Group, evidence: Evidence, *, is_only: bool) -> dict[str, Any] | None:
    """The study's fit for this optimizer, if it is of the same task or there is no other group."""
    task = group.runs[0].task
    for study in evidence.of("study"):
        if not is_only and not any(run.task == task and run.study == study.name for run in evidence.runs):
            continue
        for fit in study.result.numbers.get("fits") or ():
            same = optimizer_name(str(fit.get("optimizer", ""))) == group.optimizer
            if same and isinstance(fit.get("curve"), dict):
                return dict(fit)
    return None


def _is_of(record: JsonRecord, group: Group) -> bool:
    if not record.checkpoint:
        return False
    path = Path(str(record.checkpoint)).resolve()
    return any(path.is_relative_to(run.folder.resolve()) for run in group.runs)


def _noise_sizes(runs: Sequence[RunRecord]) -> list[int]:
    """The batch sizes at which the runs saw the noise: from the micro-batch to the batch."""
    return [size for run in runs for size in (run.micro_batch_size or run.global_batch_size, run.global_batch_size)]

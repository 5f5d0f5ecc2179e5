"""`largebatch measure variance`: the variance of the gradient against the batch size."""

from __future__ import annotations

import dataclasses
from typing import Any

from largebatch.diagnostics.noise.measurement import GradientVariance, VarianceSettings, measure_variance
from largebatch.diagnostics.noise.nested_groups import doubling_sizes, require_nested
from largebatch.diagnostics.noise.variance_law import Pair, Slope, VarianceCurve
from largebatch.experiments.measure.weights import Measurement, NotMeasurableError, Weights, fixed_subset
from largebatch.gradient.choices import Ability
from largebatch.records.figures.variance_figures import variance_figures
from largebatch.records.result import Result, Table
from largebatch.run.config.combinations import refusals
from largebatch.run.config.measure import MeasureConfig
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared

Row = tuple[str, str, str, str, str, str, str]
_HEADERS = ("what", "batches drawn", "value", "95 % interval", "theory", "value/theory", "sd")


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check the settings; returns the measurement.

    Raises:
        NotMeasurableError: if the loss couples samples.
        ConfigError: if the subset is larger than the set, or the batch sizes do not nest or exceed it.
    """
    if problems := refusals("measure variance", Ability.OWN_LOSSES, prepared.config, prepared.loss):
        raise NotMeasurableError(problems)
    subset = fixed_subset(prepared, options)
    asked = options.variance.batch_sizes
    sizes = doubling_sizes(len(subset.ids)) if asked is None else asked
    try:
        require_nested(sizes, num_samples=len(subset.ids))
    except ValueError as error:
        raise ConfigError([f"measure.variance.{error} The samples are those of measure.samples."]) from None
    settings = VarianceSettings(prepared.config.seed, tuple(sizes), options.variance.replications)

    def measure(weights: Weights) -> Result | None:
        found = measure_variance(
            weights.module,
            prepared.measured_loss,
            subset,
            weights.runtime,
            settings,
            num_samples=len(prepared.train_plain),
        )
        if found is None:
            return None
        return _result(prepared, options, weights, found)

    return measure


def _result(prepared: Prepared, options: MeasureConfig, weights: Weights, found: GradientVariance) -> Result:
    measured = f"{weights.source}, on {found.noise.num_samples} training samples in {options.precision}"
    return Result(
        title="Gradient variance",
        sentences=[_of_slope(found.with_replacement.slope), _of_noise_scale(found)],
        tables=[Table(f"gradient variance of {measured}", _HEADERS, _rows(found))],
        figures=variance_figures(found),
        numbers=_values(found) | {"settings": options.model_dump()},
        picture="variance.png",
        heading=f"{prepared.config.shown_name}, {measured}",
    )


def _of_slope(slope: Slope | None) -> str:
    """Whether the measured slope agrees with the 1/B law."""
    if slope is None:
        return "The slope is not known: too few samples have a gradient of their own. Raise measure.samples."
    measured = f"slope {slope.value:.3f} (95 %: {slope.interval[0]:.3f} to {slope.interval[1]:.3f})"
    if slope.includes_law:
        return f"The 1/B law holds: {measured}."
    return (
        f"The 1/B law is outside the interval: {measured}. Chance does that in 1 of 20 measurements, more often "
        "where few samples carry most of the variance. Raise measure.variance.replications."
    )


def _of_noise_scale(found: GradientVariance) -> str:
    moments = found.moments
    if moments.noise_scale is None:
        return "There is not enough evidence for a noise scale: |G|^2 is too small beside its error."
    interval = "" if moments.interval is None else f" (95 %: {_interval(moments.interval)})"
    return f"The noise scale is {moments.noise_scale:.4g} samples{interval}."


def _rows(found: GradientVariance) -> list[Row]:
    rows = [row for curve in (found.with_replacement, found.without_replacement) for row in _curve_rows(curve)]
    moments = found.moments
    known = moments.noise_scale is not None
    scale = f"{moments.noise_scale:.4g} samples" if known else "not enough evidence"
    values = (
        ("tr(Sigma)", f"one of all {moments.num_samples}", f"{moments.trace:.5g}", moments.trace_interval),
        ("|G|^2", f"all {moments.num_samples}", f"{moments.grad_sq_norm:.5g}", moments.grad_sq_norm_interval),
        ("noise scale", "tr(Sigma)/|G|^2", scale, moments.interval),
    )
    for what, drawn, value, interval in values:
        rows.append((what, drawn, value, "exact" if moments.is_exact else _interval(interval), "", "", ""))
    return rows


def _curve_rows(curve: VarianceCurve) -> list[Row]:
    drawn = "with replacement" if curve.replacement else "without"
    rows = [
        (
            f"variance, B={point.batch_size}", drawn, f"{point.variance:.5g}", _interval(point.interval),
            f"{point.theory:.5g}", "" if point.ratio is None else f"{point.ratio:.3f}",
            f"{point.standard_deviation:.4g}",
        )
        for point in curve.points
    ]  # fmt: skip
    if curve.slope is not None:
        corrected = drawn if curve.replacement else "without, corrected"
        rows.append(_slope_row("slope", corrected, curve.slope, "-1"))
        rows.append(_slope_row("slope of sd", corrected, curve.slope.of_standard_deviation, "-0.5"))
    return rows


def _slope_row(what: str, drawn: str, slope: Slope, theory: str) -> Row:
    low, high = slope.interval
    return what, drawn, f"{slope.value:.4f}", f"{low:.4f} to {high:.4f}", theory, "", ""


def _interval(interval: Pair | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _values(found: GradientVariance) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    for name, curve in (("with", found.with_replacement), ("without", found.without_replacement)):
        shown = values[f"{name}_replacement"]
        for point, entry in zip(curve.points, shown["points"], strict=True):
            entry |= {"standard_deviation": point.standard_deviation, "ratio": point.ratio}
        if curve.slope is not None:
            shown["slope_of_standard_deviation"] = dataclasses.asdict(curve.slope.of_standard_deviation)
    return values

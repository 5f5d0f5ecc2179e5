"""`largebatch measure sharpness`: the sharpness of the loss around given weights."""

from __future__ import annotations

import dataclasses
import math

from largebatch.diagnostics.sharpness.measurement import Sharpness, measure_sharpness
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.measure.weights import Measurement, NotMeasurableError, Weights, fixed_subset
from largebatch.gradient.choices import Ability
from largebatch.records.figures.slice_figures import slice_figures
from largebatch.records.result import Result, Table
from largebatch.run.config.combinations import refusals
from largebatch.run.config.measure import MeasureConfig, SharpnessConfig
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared

Rows = list[tuple[str, str, str, str]]


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check the settings; returns the measurement.

    Raises:
        ConfigError: if the subset is larger than the set or has no group of m samples, or the loss couples samples.
    """
    subset = _subset(prepared, options)
    settings, seed = options.sharpness, prepared.config.seed

    def measure(weights: Weights) -> Result | None:
        found = measure_sharpness(
            weights.module, prepared.measured_loss, subset, weights.runtime, settings, seed=seed, landscape=settings
        )
        if found is None:
            return None
        return _result(prepared, options, weights, found)

    return measure


def _subset(prepared: Prepared, options: MeasureConfig) -> FixedSubset:
    if problems := refusals("measure sharpness", Ability.OWN_LOSSES, prepared.config, prepared.loss):
        raise NotMeasurableError(problems)
    subset = fixed_subset(prepared, options)
    count, m = len(subset.ids), options.sharpness.m
    if count < m:
        raise ConfigError([f"measure.sharpness.m={m}: {count} samples make no group of {m}. Use m at most {count}."])
    return subset


def _rows(found: Sharpness, options: SharpnessConfig) -> Rows:
    """(what, value, error, meaning) as shown."""
    top, box = found.lambda_max, found.box
    rows = [
        ("loss", f"{found.loss:.6g}", "", "mean over the subset, in eval mode"),
        ("|gradient|", f"{found.gradient_norm:.4g}", "", "of that mean; small near a minimum"),
        ("lambda_max", f"{top.value:.6g}", f"residual {top.residual:.1e}",
         f"largest Hessian eigenvalue (Lanczos, {top.num_products} products); plain gradient descent is stable up "
         "to lr 2/lambda_max (Cohen et al. 2021)"),
        ("trace", f"{found.trace.value:.6g}", f"+- {found.trace.standard_error:.2g}",
         f"sum of all eigenvalues (Hutchinson 1990, {found.trace.num_samples} vectors)"),
        (f"{options.m}-sharpness", f"{found.m_sharpness.value:.6g}", _error(found.m_sharpness.standard_error),
         f"mean rise of a loss of {options.m} samples along its own gradient over {options.rho:g} "
         f"(Foret et al. 2021, {found.m_sharpness.num_samples} groups)"),
    ]  # fmt: skip
    if box is not None:
        meaning = f"100 (max loss - loss) / (1 + loss) for |y| <= {options.box_eps:g} (|w| + 1)"
        evaluations = f"(Keskar et al. 2017, {box.num_evaluations} evaluations)"
        rows.append(("box", f"{box.value:.6g}", "lower bound", f"{meaning} {evaluations}"))
    return rows


def _error(standard_error: float) -> str:
    return "" if math.isnan(standard_error) else f"+- {standard_error:.2g}"


def _result(prepared: Prepared, options: MeasureConfig, weights: Weights, found: Sharpness) -> Result:
    count = options.samples or len(prepared.train_plain)
    measured = f"{weights.source}, on {count} training samples in {options.precision}"
    headers = ("what", "value", "error", "meaning")
    return Result(
        title="Sharpness",
        sentences=_sentences(found, options.sharpness, count),
        tables=[Table(f"sharpness of {measured}", headers, _rows(found, options.sharpness))],
        figures=slice_figures(found.slices, unit=prepared.loss.unit),
        numbers=dataclasses.asdict(found) | {"settings": options.model_dump()},
        heading=f"{prepared.config.shown_name}, {weights.source}",
    )


def _sentences(found: Sharpness, options: SharpnessConfig, count: int) -> list[str]:
    top = found.lambda_max
    said = [f"The largest Hessian eigenvalue is {top.value:.4g}."]
    if top.value > 0:
        said[0] = (
            f"The largest Hessian eigenvalue is {top.value:.4g}: plain gradient descent is stable up to a learning "
            f"rate of {2 / top.value:.3g}."
        )
    if not top.converged:
        said.append("The eigenvalue has not converged. Raise measure.sharpness.lanczos_iterations.")
    if rest := count % options.m:
        said.append(f"{options.m}-sharpness leaves out {rest} of the {count} samples: they make no whole group.")
    return said

"""`largebatch measure sharpness`: how sharp the minimum is that given weights lie in."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from largebatch.diagnostics.sharpness.measurement import Sharpness, measure_sharpness
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.measure.finding import Finding, Measurement, NotMeasurableError
from largebatch.experiments.measure.weights import Weights, fixed_subset
from largebatch.losses.coupled import is_coupled
from largebatch.records.figures import plot_slices
from largebatch.run.config.measure import MeasureConfig, SharpnessConfig
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared

Rows = list[tuple[str, str, str, str]]


def plan(prepared: Prepared, options: MeasureConfig) -> Measurement:
    """Check what is asked for.

    Raises:
        ConfigError: if the subset is larger than the set or has no group of m samples, or the loss couples samples.
    """
    subset = _subset(prepared, options)
    settings, seed = options.sharpness, prepared.config.seed

    def measure(weights: Weights) -> Finding | None:
        found = measure_sharpness(
            weights.module, prepared.measured_loss, subset, weights.runtime, settings, seed=seed, landscape=settings
        )
        if found is None:
            return None
        return _finding(prepared, options, weights, found)

    return measure


def _subset(prepared: Prepared, options: MeasureConfig) -> FixedSubset:
    if is_coupled(prepared.loss):
        raise NotMeasurableError(
            [f"loss._target_={prepared.config.loss['_target_']}: it compares the samples of a batch, so that the loss "
             "of a subset depends on how it is cut. Measure the sharpness of a loss that is a sum over samples."]
        )  # fmt: skip
    subset = fixed_subset(prepared, options)
    count, m = len(subset.ids), options.sharpness.m
    if count < m:
        raise ConfigError([f"measure.sharpness.m={m}: {count} samples make no group of {m}. Use m at most {count}."])
    return subset


def _rows(found: Sharpness, options: SharpnessConfig, count: int) -> Rows:
    """(what, value, error, meaning) as shown."""
    top, box = found.lambda_max, found.box
    unconverged = "" if top.converged else "; not converged, raise measure.sharpness.lanczos_iterations"
    left_out = (
        f"; {rest} of the {count} samples make no whole one: left out here" if (rest := count % options.m) else ""
    )
    rows = [
        ("loss", f"{found.loss:.6g}", "", "mean over the subset, in eval mode"),
        ("|gradient|", f"{found.gradient_norm:.4g}", "", "of that mean; small near a minimum"),
        ("lambda_max", f"{top.value:.6g}", f"residual {top.residual:.1e}",
         f"largest Hessian eigenvalue (Lanczos, {top.num_products} products{unconverged}); "
         "plain gradient descent is stable up to lr 2/lambda_max (Cohen et al. 2021)"),
        ("trace", f"{found.trace.value:.6g}", f"+- {found.trace.standard_error:.2g}",
         f"sum of all eigenvalues (Hutchinson 1990, {found.trace.num_samples} vectors)"),
        (f"{options.m}-sharpness", f"{found.m_sharpness.value:.6g}", _error(found.m_sharpness.standard_error),
         f"mean rise of a loss of {options.m} samples along its own gradient over {options.rho:g} "
         f"(Foret et al. 2021, {found.m_sharpness.num_samples} groups{left_out})"),
    ]  # fmt: skip
    if box is not None:
        meaning = f"100 (max loss - loss) / (1 + loss) for |y| <= {options.box_eps:g} (|w| + 1)"
        evaluations = f"(Keskar et al. 2017, {box.num_evaluations} evaluations)"
        rows.append(("box", f"{box.value:.6g}", "lower bound", f"{meaning} {evaluations}"))
    return rows


def _error(standard_error: float) -> str:
    return "" if math.isnan(standard_error) else f"+- {standard_error:.2g}"


def _finding(prepared: Prepared, options: MeasureConfig, weights: Weights, found: Sharpness) -> Finding:
    count = options.samples or len(prepared.train_plain)
    name = prepared.config.shown_name
    return Finding(
        title=f"sharpness of {weights.source}, on {count} training samples in {options.precision}",
        headers=("what", "value", "error", "meaning"),
        rows=_rows(found, options.sharpness, count),
        record=_values(found) | {"settings": options.model_dump()},
        draw=lambda folder: plot_slices(
            found.slices, folder, title=f"{name}, {weights.source}", unit=prepared.loss.unit
        ),
    )


def _values(found: Sharpness) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    for estimate in (values["trace"], values["m_sharpness"]):
        if math.isnan(estimate["standard_error"]):
            estimate["standard_error"] = None
    return values

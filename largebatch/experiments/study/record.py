"""The numbers of study.json: points and fits, for programs and for the report."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch, Estimate
from largebatch.diagnostics.critical_batch.misfit import Misfit
from largebatch.experiments.study.analysis import Analysis
from largebatch.experiments.study.noise_scales import contests
from largebatch.experiments.study.points import StudyPoint

CURVE_POINTS = 33


def study_record(analysis: Analysis) -> dict[str, Any]:
    """The numbers, ready for JSON: unknown and unbounded ones are null."""
    return {
        "unit": "samples",
        "optimizers": list(analysis.fits),
        "points": [_point(point) for name in analysis.fits for point in analysis.of(name)],
        "fits": [_fit(name, fit) for name, fit in analysis.fits.items()],
        **_noise_scales(analysis),
    }


def _noise_scales(analysis: Analysis) -> dict[str, Any]:
    """Both noise scales of each optimizer beside B_crit; no key where nothing was measured in two geometries."""
    rows = [
        {
            "optimizer": one.optimizer,
            "b_crit": _estimate(one.b_crit),
            "euclidean": dataclasses.asdict(one.euclidean),
            "of_optimizer": dataclasses.asdict(one.of_optimizer),
            "log_errors": list(one.errors),
            "is_decided": one.is_decided,
        }
        for one in contests(analysis.fits, analysis.points)
    ]
    return {"noise_scales": rows} if rows else {}


def curve_sizes(fit: CriticalBatch) -> list[float]:
    """Batch sizes at which a curve is drawn: those measured, and evenly between on a logarithmic axis."""
    smallest, largest = (float(fit.points[place].batch_size) for place in (0, -1))
    return [float(size) for size in np.geomspace(smallest, largest, CURVE_POINTS)]


def _point(point: StudyPoint) -> dict[str, Any]:
    median, censored = point.measured.median
    low, high = point.measured.interval or (None, None)
    return {
        "optimizer": point.optimizer,
        "batch_size": point.batch_size,
        "steps": list(point.by_seed),
        "censored_at": list(point.measured.censored),
        "median_steps": None if censored else median,
        "low": low,
        "high": high,
        "level": None if low is None else point.measured.level,
        "num_runs": point.measured.num_replicates,
        "censored": censored,
        "setting": point.setting,
        "border": list(point.border),
        "noise_scale": None if point.noise_scale is None else dataclasses.asdict(point.noise_scale),
        **(
            {}
            if point.optimizer_noise_scale is None
            else {"optimizer_noise_scale": dataclasses.asdict(point.optimizer_noise_scale)}
        ),
        "trials": point.trials,
        "runs": list(point.runs),
    }


def _fit(name: str, fit: CriticalBatch) -> dict[str, Any]:
    sizes = curve_sizes(fit)
    curve = fit.curve(sizes)
    return {
        "optimizer": name,
        "s_min": _estimate(fit.s_min),
        "e_min": _estimate(fit.e_min),
        "b_crit": _estimate(fit.b_crit),
        "curve": {
            "batch_size": sizes if curve else [],
            "steps": [one.value for one in curve],
            "low": [one.low for one in curve],
            "high": [one.high for one in curve],
        },
        "supported": fit.supported,
        "verdict": fit.verdict,
        "misfit": _misfit(fit.misfit),
        "warnings": list(fit.warnings),
    }


def _misfit(misfit: Misfit | None) -> dict[str, Any] | None:
    if misfit is None:
        return None
    return dataclasses.asdict(misfit) | {
        "worst_batch_size": misfit.worst[0],
        "worst_residual": misfit.worst[1],
        "worst_left_out": misfit.worst_left_out,
        "left_out_error": misfit.left_out_error,
    }


def _estimate(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    return {key: value if math.isfinite(value) else None for key, value in dataclasses.asdict(estimate).items()}

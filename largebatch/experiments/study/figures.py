"""The two pictures of a study: steps to the target, and samples to it, over the batch size."""

from __future__ import annotations

from collections.abc import Callable

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch
from largebatch.experiments.study.analysis import Analysis, estimate_text
from largebatch.experiments.study.points import StudyPoint
from largebatch.experiments.study.record import curve_sizes
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.figures.optimizer_names import optimizer_name

_BATCH = Axis("batch size B", "samples", log=True)
_BOUND = "at least: the median did not reach the target"


def study_figures(analysis: Analysis) -> list[Diagram]:
    """Steps and samples over the batch size, with the fits and their 95 % bands."""
    return [
        Diagram(
            "steps_to_target",
            "Steps to the target",
            _BATCH,
            Axis("optimizer steps", log=True),
            _lines(analysis, lambda steps, size: steps),
            "Points: medians over seeds; bars: their 95 % intervals (order statistics), of 3 to 5 seeds the range. "
            "Curves: S = S_min (1 + B_crit/B) with 95 % bands.",
        ),
        Diagram(
            "samples_to_target",
            "Samples to the target",
            _BATCH,
            Axis("samples", log=True),
            _lines(analysis, lambda steps, size: steps * size),
            "Samples are steps times batch size: E = E_min (1 + B/B_crit).",
        ),
    ]


def _lines(analysis: Analysis, scale: Callable[[float, float], float]) -> tuple[Line, ...]:
    curves = [_curve(name, fit, scale) for name, fit in analysis.fits.items() if fit.b_crit is not None]
    measured = [line for name in analysis.fits for line in _points(name, analysis.of(name), scale)]
    return (*curves, *measured)


def _curve(name: str, fit: CriticalBatch, scale: Callable[[float, float], float]) -> Line:
    sizes = curve_sizes(fit)
    curve = fit.curve(sizes)
    assert fit.b_crit is not None
    value, low, high = (
        [scale(steps, size) for steps, size in zip(column, sizes, strict=True)]
        for column in zip(*((one.value, one.low, one.high) for one in curve), strict=True)
    )
    word = fit.verdict.partition(":")[0]
    doubt = "" if fit.supported else f", {word}"
    shown = optimizer_name(name)
    return Line(f"{shown}: B_crit {estimate_text(fit.b_crit)}{doubt}", sizes, value, low, high, optimizer=shown)


def _points(name: str, points: list[StudyPoint], scale: Callable[[float, float], float]) -> list[Line]:
    """Medians with their intervals where known; targets that were not reached are a series of their own."""
    lines, shown = [], optimizer_name(name)
    reached = [point for point in points if not point.measured.median[1]]
    if reached:
        sizes = [float(point.batch_size) for point in reached]
        medians = [point.measured.median[0] for point in reached]
        ends = [point.measured.interval or (None, None) for point in reached]
        y, low, high = (
            [None if one is None else scale(one, size) for one, size in zip(column, sizes, strict=True)]
            for column in (medians, [low for low, _ in ends], [high for _, high in ends])
        )
        lines.append(Line(shown, sizes, y, low, high, style="points", optimizer=shown))
    if hidden := [point for point in points if point.measured.median[1]]:
        sizes = [float(point.batch_size) for point in hidden]
        bounds = [scale(point.measured.median[0], point.batch_size) for point in hidden]
        lines.append(Line(_BOUND, sizes, bounds, style="bounds", name=f"{shown}: at least", optimizer=shown))
    return lines

"""The variance of mini-batch gradients over the batch size, beside the 1/B law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from largebatch.records.figures.diagram import Axis, Diagram, Line

if TYPE_CHECKING:
    from largebatch.diagnostics.noise.measurement import GradientVariance
    from largebatch.diagnostics.noise.variance_law import VarianceCurve, VariancePoint

_LEAST_FACTOR = 0.02  # without replacement the curve falls to 0, which no logarithmic axis has: it ends here
_WITH, _WITHOUT = "with replacement", "without replacement"
_BATCH = Axis("batch size B", "samples", log=True)


def variance_figures(found: GradientVariance) -> list[Diagram]:
    """Measured variances with their intervals beside the theory, and measured over theory."""
    measured = [
        (f"measured, drawn {group}{_slope_text(curve)}", group, [one for one in curve.points if one.interval])
        for curve, group in ((found.with_replacement, _WITH), (found.without_replacement, _WITHOUT))
    ]
    theory = _theory(found)
    points = [_points(label, group, shown, [1.0] * len(shown)) for label, group, shown in measured if shown]
    ratios = [_points(label, group, shown, [one.theory for one in shown]) for label, group, shown in measured if shown]
    ends = [found.with_replacement.points[place].batch_size for place in (0, -1)]
    law = Line(theory[0].label, ends, [1.0, 1.0], group=_WITH)
    return [
        Diagram(
            "variance_law",
            "Gradient variance against batch size",
            _BATCH,
            Axis("gradient variance |g_B - G|²", "mean, summed over parameters", log=True),
            (*theory, *points),
            "Bars: 95 %. Independent draws follow the 1/B law. Without replacement the noise ends with the set: the "
            "batch of all D samples has none.",
        ),
        Diagram("variance_ratio", "Measured over theory", _BATCH, Axis("measured / theory"), (law, *ratios)),
    ]


def _theory(found: GradientVariance) -> list[Line]:
    count, trace = found.noise.num_samples, found.noise.covariance_trace
    sizes = [point.batch_size for point in found.with_replacement.points]
    law = np.geomspace(sizes[0], sizes[-1], 100)
    left = (count - law) / (count - 1)
    seen = left > _LEAST_FACTOR
    finite = f"theory T/B (D-B)/(D-1), D = {count} samples"
    return [
        Line(f"theory T/B, T = tr(Sigma) = {trace:.3g}", law.tolist(), (trace / law).tolist(), group=_WITH),
        Line(finite, law[seen].tolist(), (trace / law * left)[seen].tolist(), style="dashed", group=_WITHOUT),
    ]


def _points(label: str, group: str, shown: Sequence[VariancePoint], scale: Sequence[float]) -> Line:
    rows = [(one.variance, *(one.interval or ())) for one in shown]
    value, low, high = (np.array(rows) / np.array(scale)[:, None]).T.tolist()
    return Line(label, [one.batch_size for one in shown], value, low, high, "points", group)


def _slope_text(curve: VarianceCurve) -> str:
    if curve.slope is None:
        return ""
    low, high = curve.slope.interval
    corrected = "" if curve.replacement else " over (D-B)/(D-1)"
    return f": slope{corrected} {curve.slope.value:.3f} ({low:.3f} to {high:.3f})"

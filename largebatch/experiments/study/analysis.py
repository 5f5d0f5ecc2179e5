"""Fits a curve per optimizer to a study's points, and draws the conclusions that the fits support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch, Estimate, fit_critical_batch
from largebatch.diagnostics.critical_batch.fewest_steps import fewest_steps
from largebatch.experiments.study.noise_scales import contests, sentences
from largebatch.experiments.study.points import StudyPoint
from largebatch.records.figures.optimizer_names import optimizer_name


@dataclass(frozen=True)
class Analysis:
    """Fits and conclusions.

    Attributes:
        points: all of them.
        fits: by optimizer, in the order of the points.
        conclusions: one sentence each.
    """

    points: tuple[StudyPoint, ...]
    fits: dict[str, CriticalBatch]
    conclusions: tuple[str, ...]

    def of(self, optimizer: str) -> list[StudyPoint]:
        """Its points, ascending in batch size."""
        return sorted((one for one in self.points if one.optimizer == optimizer), key=lambda one: one.batch_size)


def analyse(points: Sequence[StudyPoint]) -> Analysis:
    """Fit every optimizer's curve and conclude.

    Raises:
        ValueError: if there are no points.
    """
    names = list(dict.fromkeys(point.optimizer for point in points))
    if not names:
        raise ValueError("a study without points has no result. Add a point.")
    fits = {name: fit_critical_batch([one.measured for one in points if one.optimizer == name]) for name in names}
    analysis = Analysis(tuple(points), fits, ())
    lines = fewest_steps({optimizer_name(name): [one.measured for one in analysis.of(name)] for name in names})
    lines += [_headline(fits)] if len(names) > 1 else []
    lines += sentences(contests(fits, points), {name: optimizer_name(name) for name in names})
    lines += [line for name in names for line in _of_optimizer(analysis, name)]
    lines += [_between(one, fits[one], other, fits[other]) for one, other in combinations(names, 2)]
    return Analysis(tuple(points), fits, tuple(line for line in lines if line))


def estimate_text(estimate: Estimate) -> str:
    """A value with its interval.

    >>> estimate_text(Estimate(1234.5, 1000.0, math.inf))
    '1,234 (95 %: 1,000 to unbounded)'
    """
    return f"{_number(estimate.value)} (95 %: {_number(estimate.low)} to {_number(estimate.high)})"


def _number(value: float) -> str:
    if value == math.inf:
        return "unbounded"
    return f"{value:,.0f}" if 100 <= value < 1e12 else f"{value:.3g}"


def _headline(fits: dict[str, CriticalBatch]) -> str:
    """The critical batch of each optimizer."""
    values = [
        f"{name} {estimate_text(fit.b_crit)}" if fit.b_crit is not None and fit.supported else f"{name} not supported"
        for name, fit in ((optimizer_name(name), fit) for name, fit in fits.items())
    ]
    return f"B_crit in samples: {', '.join(values)}."


def _of_optimizer(analysis: Analysis, name: str) -> list[str]:
    fit, points = analysis.fits[name], analysis.of(name)
    name, lines = optimizer_name(name), []
    if fit.b_crit is not None and fit.s_min is not None and fit.e_min is not None:
        if fit.supported:
            lines += [
                f"{name}: B_crit is {estimate_text(fit.b_crit)} samples.",
                f"{name}: a batch of B_crit takes twice the fewest steps and twice the fewest samples. S_min is "
                f"{estimate_text(fit.s_min)} steps, E_min {estimate_text(fit.e_min)} samples.",
            ]
        else:
            lines.append(
                f"{name}: the evidence does not support a value of B_crit. The fit gives {estimate_text(fit.b_crit)}."
            )
        lines.append(f"{name}: {fit.verdict}.")
    lines += [f"{name}: {warning}" for warning in fit.warnings]
    lines += [f"{name}, batch {point.batch_size:,}: {line}" for point in points for line in point.border]
    scale = _noise_scale(name, fit, points)
    return [*lines, scale] if scale else lines


def _noise_scale(name: str, fit: CriticalBatch, points: Sequence[StudyPoint]) -> str:
    """The noise scale, from gradients alone, beside B_crit, from training to the target."""
    measured = [(point.batch_size, point.noise_scale) for point in points if point.noise_scale is not None]
    if not measured:
        return ""
    values = [scale.value for _, scale in measured]
    ends = _number(min(values)) + (f" to {_number(max(values))}" if len(values) > 1 else "")
    sentence = (
        f"{name}: the noise scale of the tuned runs ends at {ends} samples, over {len(measured)} batch "
        f"size{'s' * (len(measured) > 1)}"
    )
    if fit.b_crit is None or not fit.supported:
        return f"{sentence}. There is no B_crit to compare it with."
    typical = math.exp(sum(map(math.log, values)) / len(values))
    return f"{sentence}. Its geometric mean is {typical / fit.b_crit.value:.2g} times B_crit."


def _between(one: str, fit: CriticalBatch, other: str, second: CriticalBatch) -> str:
    """The optimizer with the larger critical batch, if the intervals do not overlap."""
    if fit.b_crit is None or second.b_crit is None:
        return ""
    one, other = optimizer_name(one), optimizer_name(other)
    (smaller, low), (larger, high) = sorted([(one, fit.b_crit), (other, second.b_crit)], key=lambda pair: pair[1].value)
    if low.high >= high.low:
        return f"B_crit of {larger} and {smaller} shows no clear difference: their intervals overlap."
    doubted = [name for name, found in ((one, fit), (other, second)) if found.misfit and not found.misfit.is_small]
    doubt = (
        f" Do not rely on that: the curve of {' and '.join(doubted)} misses its points by too much." if doubted else ""
    )
    return f"{larger} has a larger B_crit than {smaller}: their intervals do not overlap.{doubt}"

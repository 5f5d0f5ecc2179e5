"""The variance of mini-batch gradients over the batch size, before and after training."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from largebatch.diagnostics.noise.measurement import GradientVariance, VarianceSettings, measure_variance
from largebatch.diagnostics.noise.nested_groups import require_nested
from largebatch.diagnostics.noise.variance_law import Slope, VarianceCurve
from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.training_set import training_set
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError
from largebatch.training.loop import Observer, Run

_MICRO = 256  # samples per forward pass of the mean gradient


class Settings(Section):
    """See conf/experiment/textbook/gradient_variance.yaml."""

    batch_sizes: Annotated[list[PositiveInt], Field(min_length=2)]
    replications: Annotated[int, Field(ge=2)]
    samples: PositiveInt | None


class VarianceAtEnds(Observer):
    """Observer that measures before the first step and after the last one.

    Attributes:
        found: (optimizer steps, measurement), in time.
    """

    def __init__(self, subset: FixedSubset, settings: VarianceSettings) -> None:
        self.found: list[tuple[int, GradientVariance]] = []
        self._subset, self._settings = subset, settings

    def on_start(self, run: Run) -> None:
        """The initial weights."""
        self._measure(run)

    def on_end(self, run: Run, status: str) -> None:
        """The final weights, unless they are not numbers any more."""
        if status != "diverged":
            self._measure(run)

    def _measure(self, run: Run) -> None:
        count, loss = len(self._subset.dataset), run.gradient.local.loss
        found = measure_variance(run.module, loss, self._subset, run.runtime, self._settings, num_samples=count)
        assert found is not None, "one process"
        self.found.append((run.progress.step, found))


def run(experiment: Experiment, settings: Settings) -> Result:
    """Train once, measure at both ends."""
    seed = int(experiment.config.seed)
    observer = VarianceAtEnds(_subset(experiment, settings), _variance_settings(settings, seed))
    experiment.train("run", observers=[observer])
    ends = [(f"step {step:,}", found) for step, found in observer.found]
    first = ends[0][1]
    return Result(
        title="The variance of a mini-batch gradient",
        question="Does the variance of the gradient fall like 1/B?",
        sentences=_sentences(ends),
        tables=(_table(ends),),
        figures=(_diagram(ends),),
        numbers={"num_samples": first.noise.num_samples, "ends": {name: _numbers(found) for name, found in ends}},
    )


def _subset(experiment: Experiment, settings: Settings) -> FixedSubset:
    dataset = training_set(experiment)
    count = len(dataset) if settings.samples is None else settings.samples
    errors = []
    if count > len(dataset):
        errors.append(f"textbook.samples={count}: the training set has {len(dataset)}. Use as many at most, or null.")
    try:
        require_nested(settings.batch_sizes, num_samples=count)
    except ValueError as error:
        errors.append(f"textbook.{error}")
    if errors:
        raise ConfigError(errors)
    return FixedSubset.random(dataset, count, seed=experiment.config.seed, micro_batch_size=_MICRO)


def _variance_settings(settings: Settings, seed: int) -> VarianceSettings:
    return VarianceSettings(seed, tuple(settings.batch_sizes), settings.replications)


def _diagram(ends: list[tuple[str, GradientVariance]]) -> Diagram:
    lines = []
    for name, found in ends:
        for curve, drawn in ((found.with_replacement, "with"), (found.without_replacement, "without")):
            # At the batch of all samples nothing is left, and 0 has no place on a logarithmic axis.
            shown = [(point, point.interval) for point in curve.points if point.interval is not None]
            sizes = [point.batch_size for point, _ in shown]
            low, high = ([interval[end] for _, interval in shown] for end in (0, 1))
            measured = [point.variance for point, _ in shown]
            lines.append(Line(f"{name}, drawn {drawn} replacement", sizes, measured, low, high, style="points"))
        trace = found.noise.covariance_trace
        sizes = [point.batch_size for point in found.with_replacement.points]
        lines.append(Line(f"{name}, theory tr(Sigma)/B", sizes, [trace / size for size in sizes], style="dashed"))
    return Diagram(
        "variance_over_batch_size",
        "Variance of the gradient over the batch size",
        Axis("batch size", "samples", log=True),
        Axis("mean |g_B - G|^2", log=True),
        tuple(lines),
        "Bars: 95 %. Without replacement the variance is (D - B)/(D - 1) of the law's, and 0 at the whole set of D.",
    )


def _table(ends: list[tuple[str, GradientVariance]]) -> Table:
    rows = []
    for name, found in ends:
        for curve in (found.with_replacement, found.without_replacement):
            drawn = "with" if curve.replacement else "without"
            for point in curve.points:
                interval = "" if point.interval is None else "{:.3g} to {:.3g}".format(*point.interval)
                cells = (f"{point.variance:.3g}", interval, f"{point.theory:.3g}", f"{point.standard_deviation:.3g}")
                rows.append((name, f"{point.batch_size:,}", drawn, *cells))
    headers = ("weights", "batch", "replacement", "variance", "95 % interval", "theory", "sd")
    return Table(f"variance of the gradient, of {ends[0][1].noise.num_samples:,} samples", headers, rows)


def _sentences(ends: list[tuple[str, GradientVariance]]) -> list[str]:
    sentences = []
    for name, found in ends:
        slope, corrected = found.with_replacement.slope, found.without_replacement.slope
        sentences.append(_slope_sentence(f"At {name} the variance", slope))
        if corrected is not None:
            sentences.append(_slope_sentence("Without replacement, and divided by (D - B)/(D - 1), it", corrected))
        scale = float(f"{found.noise.simple_noise_scale:.3g}")
        sentences.append(f"The noise scale at {name} is {scale:,.6g} samples.")
    return sentences


def _slope_sentence(subject: str, slope: Slope | None) -> str:
    if slope is None:
        return f"{subject} has no known slope: there are too few replications."
    low, high = slope.interval
    law = "the 1/B law holds" if slope.includes_law else "the law's -1 lies outside, as it does by chance in 5 %"
    return f"{subject} falls like B to the power {slope.value:.3f} (95 %: {low:.3f} to {high:.3f}): {law}."


def _numbers(found: GradientVariance) -> dict[str, Any]:
    def of_curve(curve: VarianceCurve) -> dict[str, Any]:
        slope = curve.slope
        return {
            "batch_sizes": [point.batch_size for point in curve.points],
            "variance": [point.variance for point in curve.points],
            "theory": [point.theory for point in curve.points],
            "slope": slope and {"value": slope.value, "low": slope.interval[0], "high": slope.interval[1]},
        }  # fmt: skip

    return {
        "covariance_trace": found.noise.covariance_trace,
        "grad_sq_norm": found.noise.grad_sq_norm,
        "noise_scale": found.noise.simple_noise_scale,
        "with_replacement": of_curve(found.with_replacement),
        "without_replacement": of_curve(found.without_replacement),
    }

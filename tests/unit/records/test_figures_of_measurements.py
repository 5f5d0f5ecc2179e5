"""Figures of measurements, as values: the 1/B law, slices, all-reduces, parts of the gap, learning-rate tests."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from largebatch.diagnostics import GapParts, Interval, Part, fit_transfer
from largebatch.diagnostics.closed_forms import GradientNoise
from largebatch.diagnostics.noise.measurement import GradientVariance
from largebatch.diagnostics.noise.variance_law import variance_curve
from largebatch.records.figures.communication_figures import step_figure, transfer_figure
from largebatch.records.figures.diagram import Diagram, Line, Surface
from largebatch.records.figures.gap_figures import gap_parts_figures
from largebatch.records.figures.slice_figures import slice_figures
from largebatch.records.figures.variance_figures import variance_figures

SIZES = [1, 10, 100]
NOISE = GradientNoise(100, 1.0, 8.0)
TABLE = np.array([[8.0, 0.8, 0.1], [8.2, 0.7, 0.05], [7.9, 0.9, 0.08]])


def variances(table: np.ndarray = TABLE) -> GradientVariance:
    curves = {
        f"{name}_replacement": variance_curve(table, SIZES, NOISE, replacement=name == "with")
        for name in ("with", "without")
    }
    return GradientVariance(noise=NOISE, moments=None, **curves)


def by_start(figure: Diagram) -> dict[str, Line]:
    """Lines by the first words of their labels."""
    return {line.label.partition(":")[0]: line for line in figure.lines}


def test_measured_variances_stand_beside_both_laws():
    found = variances()
    law, ratio = variance_figures(found)
    assert (law.x.log, law.y.log, ratio.x.log, ratio.y.log) == (True, True, True, False)
    assert str(law.x) == "batch size B (samples)"
    infinite, finite, first, _ = law.lines
    assert (infinite.label, finite.label) == (
        "theory T/B, T = tr(Sigma) = 8", "theory T/B (D-B)/(D-1), D = 100 samples",
    )  # fmt: skip
    assert list(infinite.y) == pytest.approx(8 / np.array(infinite.x))
    x = np.array(finite.x)
    assert list(finite.y) == pytest.approx(8 / x * (100 - x) / 99)
    slope = found.with_replacement.slope
    assert slope is not None
    assert first.label.startswith(f"measured, drawn with replacement: slope {slope.value:.3f} ({slope.interval[0]:.3f}")
    assert (list(first.x), list(first.y)) == (SIZES, pytest.approx(list(TABLE.mean(axis=0))))
    assert first.low is not None
    assert first.low[0] == pytest.approx(found.with_replacement.points[0].interval[0])
    assert first.series == infinite.series != finite.series


def test_measured_over_theory_leaves_out_the_batch_of_all_samples_which_has_no_noise():
    lines = by_start(variance_figures(variances())[1])
    with_replacement = lines["measured, drawn with replacement"]
    without = lines["measured, drawn without replacement"]
    assert list(with_replacement.y) == pytest.approx(list(TABLE.mean(axis=0) / (8.0 / np.array(SIZES))))
    assert (list(without.x), list(without.y)) == ([1, 10], pytest.approx([8.0333333 / 8, 0.8 / (0.8 * 90 / 99)]))


def test_a_variance_of_zero_does_not_fail():
    table = TABLE.copy()
    table[:, 2] = 0.0
    law, _ = variance_figures(variances(table))
    line = by_start(law)["measured, drawn with replacement"]
    assert (list(line.x), line.label) == ([1, 10], "measured, drawn with replacement")


POSITIONS = [-1.0, 0.0, 1.0]
BOWL: dict[str, Any] = {
    "line_positions": POSITIONS, "line": [3.0, 1.0, 2.0],
    "plane_positions": POSITIONS, "plane": [[5.0, 4.0, 6.0], [3.0, 1.0, 2.0], [7.0, 8.0, 9.0]],
}  # fmt: skip


def slices(unit: str = "sample", **changed: Any) -> list[Any]:
    return slice_figures(SimpleNamespace(**BOWL | changed), unit=unit)  # type: ignore[arg-type]


def test_slices_show_losses_over_distance_around_the_weights():
    line, plane = slices("token")
    curve, here = line.lines
    assert (line.name, curve.x, curve.y) == ("slice_1d", POSITIONS, BOWL["line"])
    assert (here.x, here.y, here.style) == ([0, 0], [1.0, 3.0], "dashed")
    assert str(line.x) == "distance along a random direction (1: as long as the filter)"
    assert (str(line.y), line.y.log) == ("loss (mean per token)", False)
    assert isinstance(plane, Surface)
    assert (plane.name, plane.columns, plane.values) == ("slice_2d", POSITIONS, BOWL["plane"])
    assert plane.x.label == "distance along the first direction", "which changes along a row"
    assert (plane.trails[0].x, plane.trails[0].y) == ([0], [0])


def test_losses_of_many_magnitudes_are_logarithmic_and_lost_ones_left_out():
    losses = [[1.0, 10.0, 100.0], [1e3, math.inf, math.nan], [1.0, 1.0, 1.0]]
    line, plane = slices(line=[100.0, 1.0, 1e9], plane=losses)
    assert (line.y.log, plane.z.log, plane.values[1]) == (True, True, [1e3, None, None])


def test_what_was_not_measured_or_has_no_number_is_left_out():
    assert [one.name for one in slices(plane=[])] == ["slice_1d"]
    assert slices(line=[math.nan] * 3, plane=[[math.inf] * 3] * 3) == []
    assert len(slices(plane=[[1.0] * 3] * 3)) == 2


def test_the_fitted_line_and_the_gradient_stand_over_the_times_of_all_reduces():
    sizes, median = [1000, 10_000, 100_000], [0.00101, 0.0011, 0.002]  # 1 ms and 100 MB/s
    figure = transfer_figure(sizes, [median, median, median], fit_transfer(sizes, median), [50_000, 20_000])
    measured, law, gradient = figure.lines
    assert (measured.y, measured.style) == (median, "points")
    assert law.label == "fit: 1 ms + size / (100 MB/s)"
    assert list(law.y) == pytest.approx(1e-3 + np.array(law.x) / 1e8)
    assert gradient.label == "the gradient's 2 parts, together 70 kB"
    assert (gradient.x, gradient.y[2]) == ([20_000] * 3 + [50_000] * 3, None), "an upright line each"
    assert (figure.x.label, figure.y.label) == ("size", "time of an all-reduce")


def test_the_parts_of_a_step_lie_side_by_side():
    figure = step_figure({"with": {"step": 0.01, "difference": 0.002}, "communication": {"hidden": 0.001}})
    assert [(bar.row, bar.start, bar.end, bar.label) for bar in figure.bars] == [
        (0, 0.0, 0.01, "step"), (0, 0.01, 0.012, "difference"), (1, 0.0, 0.001, "hidden"),
    ]  # fmt: skip


def test_each_part_of_the_gap_begins_where_the_one_before_ends():
    def part(name: str, value: float) -> Part:
        return Part(name, Interval(value, value - 0.1, value + 0.1), None)

    parts = (part("augmentation", -0.5), Part("train mode", None, None), part("generalization", 0.25))
    whole = part("naive", -0.25)
    (figure,) = gap_parts_figures(GapParts(parts, whole, whole, 2.0, None, 1.75, None), unit="token")
    assert figure.rows == ["training", "augmentation", "train mode", "generalization", "validation"]
    assert [(bar.start, bar.end, bar.text) for bar in figure.bars] == [
        (2.0, 2.0, "2"), (2.0, 1.5, "-0.5"), (1.5, 1.5, "none"), (1.5, 1.75, "+0.25"), (1.75, 1.75, "1.75"),
    ]  # fmt: skip
    assert [bar.label for bar in figure.bars] == ["", "better", "", "makes the model look worse", ""]
    assert (figure.bars[1].low, figure.bars[1].high) == (pytest.approx(1.4), pytest.approx(1.6))
    assert (str(figure.x), figure.connected) == ("loss (mean per token)", True)


def test_the_gap_of_accuracies_is_one_of_errors():
    fall = Part("generalization", Interval(0.1, 0.0, 0.2), Interval(0.05, 0.04, 0.06))
    _, error = gap_parts_figures(GapParts((fall,), fall, fall, 1.0, 0.75, 1.1, 0.7), unit="sample")
    assert [(bar.start, pytest.approx(bar.end)) for bar in error.bars] == [(0.25, 0.25), (0.25, 0.3), (0.3, 0.3)] or [
        round(bar.end, 6) for bar in error.bars
    ] == [0.25, 0.3, 0.3]
    assert [bar.text for bar in error.bars] == ["25.00%", "+5.00%", "30.00%"]

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from largebatch.diagnostics.closed_forms import GradientNoise
from largebatch.diagnostics.noise.measurement import GradientVariance
from largebatch.diagnostics.noise.variance_law import variance_curve
from largebatch.records.figures import plot_variance
from largebatch.records.figures.variance_plot import variance_figure

SIZES = [1, 10, 100]
NOISE = GradientNoise(100, 1.0, 8.0)
TABLE = np.array([[8.0, 0.8, 0.1], [8.2, 0.7, 0.05], [7.9, 0.9, 0.08]])


def found(table: np.ndarray = TABLE) -> GradientVariance:
    curves = {
        f"{name}_replacement": variance_curve(table, SIZES, NOISE, replacement=name == "with")
        for name in ("with", "without")
    }
    return GradientVariance(noise=NOISE, moments=None, **curves)


def lines(figure: Figure, axis: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in figure.axes[axis].get_lines()}


def points(figure: Figure, axis: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [container.lines[0].get_data() for container in figure.axes[axis].containers]


def test_points_and_theory_are_drawn_on_logarithmic_axes_with_names_and_units(tmp_path):
    measured = found()
    figure = variance_figure(measured, "costs $3")
    ax, below = figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), below.get_xscale()) == ("log", "log", "log")
    assert below.get_xlabel() == "batch size B (samples)"
    assert ax.get_title() == r"costs \$3"
    slope = measured.with_replacement.slope
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == "theory T/B, T = tr(Sigma) = 8"
    assert labels[1] == "theory T/B (D-B)/(D-1), D = 100 samples"
    assert labels[2].startswith(f"measured, drawn with replacement: slope {slope.value:.3f} ({slope.interval[0]:.3f}")
    law_x, law_y = lines(figure, 0)[labels[0]]
    assert law_y == pytest.approx(8 / law_x)
    finite_x, finite_y = lines(figure, 0)[labels[1]]
    assert finite_y == pytest.approx(8 / finite_x * (100 - finite_x) / 99)
    with_x, with_y = points(figure, 0)[0]
    assert (list(with_x), list(with_y)) == (SIZES, pytest.approx(list(TABLE.mean(axis=0))))
    path = plot_variance(measured, tmp_path / "new", title="")
    assert path.name == "variance.png"
    assert imread(path).std() > 0.05


def test_the_batch_of_all_samples_is_left_out_of_the_curve_that_ends_there():
    figure = variance_figure(found(), "")
    assert list(points(figure, 0)[1][0]) == [1, 10]


def test_below_measured_is_compared_with_theory():
    figure = variance_figure(found(), "")
    with_replacement, without = (data[1] for data in points(figure, 1))
    assert list(with_replacement) == pytest.approx(list(TABLE.mean(axis=0) / (8.0 / np.array(SIZES))))
    assert list(without) == pytest.approx([8.0333333 / 8, 0.8 / (0.8 * 90 / 99)])


def test_a_variance_of_zero_does_not_fail():
    table = TABLE.copy()
    table[:, 2] = 0.0
    figure = variance_figure(found(table), "")
    assert list(points(figure, 0)[0][0]) == [1, 10]
    assert "slope" not in figure.axes[0].get_legend().get_texts()[2].get_text()

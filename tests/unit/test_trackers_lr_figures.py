from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from largebatch.records.figures.diagram import Diagram, Surface
from largebatch.records.figures.draw_png import draw_png
from largebatch.records.figures.lr_figures import range_diagram, range_map


@dataclass
class Curve:
    smoothed: np.ndarray
    smoothed_rates: np.ndarray


RATES = np.array([0.01, 0.1, 1.0, 10.0])
FALLS = Curve(np.array([2.0, 1.5, 1.0, 2.5]), RATES)
DIVERGES = Curve(np.array([2.0, 1.0, 90.0]), RATES[:3])


def test_a_loss_that_diverges_is_cut_where_it_is_far_above_its_start(tmp_path):
    figure = range_diagram({3: FALLS, 4: DIVERGES}, {"suggestion": 0.05}, title="costs $3", caption="")
    assert isinstance(figure, Diagram)
    first, second, mark = figure.lines
    assert (first.label, second.label, mark.label) == ("seed 3", "seed 4", "suggestion 0.05")
    assert list(first.y) == [2.0, 1.5, 1.0, 2.5]
    assert (list(mark.x), list(mark.y), mark.style) == ([0.05, 0.05], [1.0, 2.5], "dashed")
    assert (figure.x.log, figure.record()["lines"][1]["y"]) == (True, [2.0, 1.0, None])
    assert draw_png(figure, tmp_path).stat().st_size > 5000


def test_the_map_has_the_mean_of_seeds_at_the_rates_and_no_value_where_one_has_ended(tmp_path):
    half = Curve(FALLS.smoothed / 2, RATES)
    curves = {64: [FALLS, DIVERGES], 8: [FALLS, half]}
    figure = range_map(curves, list(RATES), {64: 0.5}, title="")
    assert isinstance(figure, Surface)
    assert (list(figure.columns), list(figure.rows)) == (list(RATES), [8, 64])
    assert figure.record()["values"] == [pytest.approx([1.5, 1.125, 0.75, 1.875]), [2.0, 1.25, None, None]]
    (trail,) = figure.trails
    assert (list(trail.x), list(trail.y)) == ([0.5], [64])
    assert draw_png(figure, tmp_path).stat().st_size > 5000


def test_between_its_rates_a_loss_is_read_off_over_the_logarithm():
    late = Curve(np.array([2.0, 1.0]), np.array([0.1, 10.0]))
    assert range_map({8: [late]}, [1.0], {}, title="").values == [[pytest.approx(1.5)]]


def test_curves_without_a_finite_loss_are_drawn_as_nothing(tmp_path):
    nothing = Curve(np.array([np.nan]), np.array([0.01]))
    figure = range_diagram({0: nothing}, {"suggestion": 0.05}, title="", caption="")
    assert figure.lines[1].y == [0.0, 1.0]
    assert draw_png(figure, tmp_path).exists()

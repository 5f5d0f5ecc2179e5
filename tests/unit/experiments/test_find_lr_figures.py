from __future__ import annotations

import numpy as np
import pytest

from largebatch.diagnostics import RangeCurve, RangeSettings
from largebatch.experiments.find_lr import RangeTests, curves_of_seeds, map_of_batches

SETTINGS = RangeSettings(min=0.01, max=1000.0, steps=6, smoothing=0.0)


def curve(*losses: float, diverged: bool = False) -> RangeCurve:
    return RangeCurve(SETTINGS, SETTINGS.rates[: len(losses)], np.array(losses), diverged)


FALLS, DIVERGES = curve(2.0, 2.0, 1.9, 1.0, 0.9, 2.5), curve(2.0, 1.0, 90.0, diverged=True)


def test_a_loss_that_diverges_is_cut_where_it_is_far_above_its_start():
    figure = curves_of_seeds(RangeTests(64, {3: FALLS, 4: DIVERGES, 5: FALLS}), title="costs $3")
    first, second, _, mark = figure.lines
    assert (first.label, second.label, mark.label) == ("seed 3", "seed 4", "suggestion 1")
    assert list(first.y) == [2.0, 2.0, 1.9, 1.0, 0.9, 2.5]
    assert (list(mark.x), list(mark.y), mark.style) == (pytest.approx([1.0, 1.0]), [0.9, 2.5], "dashed")
    assert (figure.x.log, figure.record()["lines"][1]["y"]) == (True, [2.0, 1.0, None])
    assert figure.caption.startswith("batch 64: the loss falls fastest there")


def test_the_map_has_the_mean_of_seeds_at_the_rates_and_no_value_where_one_has_ended():
    half = curve(*FALLS.losses / 2)
    figure = map_of_batches([RangeTests(8, {0: FALLS, 1: half}), RangeTests(64, {0: FALLS, 1: DIVERGES})], title="")
    assert (list(figure.columns), list(figure.rows)) == (list(SETTINGS.rates), [8, 64])
    assert figure.record()["values"] == [
        pytest.approx([1.5, 1.5, 1.425, 0.75, 0.675, 1.875]),
        [2.0, 1.5, None, None, None, None],
    ]
    (trail,) = figure.trails
    assert (list(trail.x), list(trail.y)) == (pytest.approx([1.0]), [8])


def test_curves_without_a_finite_loss_are_drawn_as_nothing():
    figure = curves_of_seeds(RangeTests(64, {0: curve(np.nan, diverged=True)}), title="")
    assert len(figure.lines) == 1, "no suggestion"

"""Pictures of all layers and of the noise scale: what is drawn is what was measured, and a reader can tell it."""

from __future__ import annotations

import math

import numpy as np

from largebatch.trackers.heat_map import layers_figure, plot_layers
from largebatch.trackers.noise_figure import noise_scale_figure
from largebatch.trackers.plots import plot_run

LAYERS = [
    {"step": 1, "samples_seen": 8, "trust_ratio/a": 0.5, "trust_ratio/b": 2.0, "update_to_weight/a": math.nan},
    {"step": 2, "samples_seen": 24, "trust_ratio/a": 0.0, "trust_ratio/b": math.inf, "update_to_weight/a": 0.1},
]
NOISE = [
    {"step": 1, "samples_seen": 8, "train/global_batch_size": 8, "noise_scale/trace": 3.0},
    {"step": 2, "samples_seen": 16, "train/global_batch_size": 8},
    {"step": 2, "samples_seen": 16, "noise_scale/value": 20.0, "noise_scale/low": 10.0, "noise_scale/high": 40.0},
    {"step": 3, "samples_seen": 24, "noise_scale/value": 30.0, "noise_scale/low": 20.0, "noise_scale/high": 50.0},
]


def test_the_heat_map_has_a_row_per_layer_and_a_column_per_measurement():
    figure = layers_figure(LAYERS, "trust_ratio", "run")
    assert figure is not None
    ax, colours = figure.axes
    (mesh,) = ax.collections
    # Zero and infinity have the colours of the ends.
    assert np.asarray(mesh.get_array()).reshape(2, 2).tolist() == [[0.5, 0.5], [2.0, 2.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_xlim()) == ("samples seen", (0.0, 24.0))
    assert colours.get_ylabel() == "trust ratio (logarithmic)"
    assert ax.yaxis_inverted(), "the first layer is on top"


def test_what_was_not_measured_is_not_drawn(tmp_path):
    figure = layers_figure(LAYERS, "update_to_weight", "run")
    assert figure is not None
    values = np.ma.asarray(figure.axes[0].collections[0].get_array()).reshape(-1)
    assert values.mask.tolist() == [True, False]
    assert [path.name for path in plot_layers(LAYERS, tmp_path, "run")] == ["trust_ratio.png", "update_to_weight.png"]
    assert plot_layers([{"step": 1, "samples_seen": 4}], tmp_path, "run") == []


def test_the_noise_scale_is_drawn_with_its_interval_beside_the_batch(tmp_path):
    figure = noise_scale_figure(NOISE, "run")
    assert figure is not None
    (ax,) = figure.axes
    value, batch = ax.get_lines()
    assert (value.get_xdata().tolist(), value.get_ydata().tolist()) == ([16.0, 24.0], [20.0, 30.0])
    assert batch.get_ydata().tolist() == [8.0, 8.0]
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert {10.0, 20.0, 40.0, 50.0} <= set(edges.tolist())
    assert (ax.get_ylabel(), ax.get_yscale()) == ("samples (logarithmic)", "log")
    assert noise_scale_figure(NOISE[:2], "run") is None
    of_group = {"step": 3, "samples_seen": 24, "noise_scale/head/trace": 1.0, "noise_scale/head/value": 5.0}
    with_group = noise_scale_figure([*NOISE, of_group], "run")
    assert with_group is not None
    lines = {line.get_label(): line.get_ydata().tolist() for line in with_group.axes[0].get_lines()}
    assert lines == {"gradient noise scale": [20.0, 30.0], "head": [5.0], "global batch": [8.0, 8.0]}
    assert "noise_scale.png" in {path.name for path in plot_run(NOISE, tmp_path, "run")}

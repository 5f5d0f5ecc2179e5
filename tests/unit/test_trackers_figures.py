"""Pictures of all layers and of the noise scale: what is drawn is what was measured, and a reader can tell it."""

from __future__ import annotations

import math

import numpy as np

from largebatch.diagnostics import fit_transfer
from largebatch.records.figures import communication_figures
from largebatch.records.figures.communication_figures import communication_figure, plot_transfer
from largebatch.records.figures.heat_map import layers_figure, plot_layers
from largebatch.records.figures.noise_figure import noise_scale_figure
from largebatch.records.figures.plots import plot_run
from largebatch.records.rows.columns import columns_of

LAYERS = [
    {"step": 1, "samples_seen": 8, "trust_ratio/a": 0.5, "trust_ratio/b": 2.0, "update_to_weight/a": math.nan},
    {"step": 2, "samples_seen": 24, "trust_ratio/a": 0.0, "trust_ratio/b": math.inf, "update_to_weight/a": 0.1},
]
NOISE = [
    {"step": 1, "samples_seen": 8, "train/global_batch_size": 8, "noise_scale/trace": 3.0},
    {"step": 2, "samples_seen": 16, "train/global_batch_size": 8},
    {
        "step": 2,
        "samples_seen": 16,
        "noise_scale/b_simple": 20.0,
        "noise_scale/ci_low": 10.0,
        "noise_scale/ci_high": 40.0,
    },
    {
        "step": 3,
        "samples_seen": 24,
        "noise_scale/b_simple": 30.0,
        "noise_scale/ci_low": 20.0,
        "noise_scale/ci_high": 50.0,
    },
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
    figure = noise_scale_figure(columns_of(NOISE), "run")
    assert figure is not None
    (ax,) = figure.axes
    value, batch = ax.get_lines()
    assert (value.get_xdata().tolist(), value.get_ydata().tolist()) == ([16.0, 24.0], [20.0, 30.0])
    assert batch.get_ydata().tolist() == [8.0, 8.0]
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert {10.0, 20.0, 40.0, 50.0} <= set(edges.tolist())
    assert (ax.get_ylabel(), ax.get_yscale()) == ("samples (logarithmic)", "log")
    assert noise_scale_figure(columns_of(NOISE[:2]), "run") is None
    of_group = {"step": 3, "samples_seen": 24, "noise_scale/head/trace": 1.0, "noise_scale/head/b_simple": 5.0}
    with_group = noise_scale_figure(columns_of([*NOISE, of_group]), "run")
    assert with_group is not None
    lines = {line.get_label(): line.get_ydata().tolist() for line in with_group.axes[0].get_lines()}
    assert lines == {"gradient noise scale": [20.0, 30.0], "head": [5.0], "global batch": [8.0, 8.0]}
    assert "noise_scale.png" in {path.name for path in plot_run(columns_of(NOISE), tmp_path, "run")}


COMMUNICATION = [
    {"step": 1, "samples_seen": 8, "train/loss": 1.0},
    {"step": 2, "samples_seen": 16, "communication/total_s": 0.004, "communication/exposed_s": 0.001,
     "communication/share_of_step": 0.1, "communication/straggler_wait_s": 0.0005, "communication/predicted_s": 0.003},
    {"step": 4, "samples_seen": 32, "communication/total_s": 0.006, "communication/exposed_s": 0.002,
     "communication/share_of_step": 0.2, "communication/straggler_wait_s": 0.0001},
]  # fmt: skip


def test_exposed_and_hidden_communication_are_stacked_to_the_total_beside_their_share(tmp_path):
    figure = communication_figure(columns_of(COMMUNICATION), "run")
    assert figure is not None
    left, right = figure.axes
    exposed, hidden = (stack.get_paths()[0].vertices[:, 1] for stack in left.collections)
    assert (exposed.min(), exposed.max()) == (0.0, 0.002)
    assert (hidden.min(), hidden.max()) == (0.001, 0.006)
    assert right.get_lines()[0].get_ydata().tolist() == [10.0, 20.0]
    assert right.get_ylabel() == "exposed communication (% of the step's time)"
    assert communication_figure(columns_of(COMMUNICATION[:1]), "run") is None
    assert communication_figure(columns_of(COMMUNICATION[:2]), "run") is not None, (
        "one measurement has no area, but a point"
    )
    assert "communication.png" in {path.name for path in plot_run(columns_of(COMMUNICATION), tmp_path, "run")}


def test_the_fitted_line_and_the_gradient_are_drawn_over_the_times_of_all_reduces(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(communication_figures, "save", lambda figure, path: figures.append(figure) or path)
    sizes, median = [1000, 10_000, 100_000], [0.00101, 0.0011, 0.002]  # 1 ms and 100 MB/s
    plot_transfer(
        tmp_path / "one.png", title="two ranks", num_bytes=sizes, seconds=[median, median, median],
        fit=fit_transfer(sizes, median), parts=[50_000, 20_000],
        bars={"with": {"step": 0.01, "difference": 0.002}, "communication": {"hidden": 0.001}},
    )  # fmt: skip
    left, right = figures[0].axes
    labels = left.get_legend_handles_labels()[1]
    assert "fit: 1.0 ms + size / (100.0 MB/s)" in labels
    assert "the gradient's 2 parts, together 70.0 kB" in labels
    line = next(line for line in left.get_lines() if line.get_label().startswith("fit"))
    assert np.allclose(line.get_ydata(), 1e-3 + line.get_xdata() / 1e8)
    assert (left.get_xlabel(), left.get_ylabel()) == ("size", "time of an all-reduce")
    assert [(bar.get_x(), bar.get_width()) for bar in right.patches] == [(0.0, 0.01), (0.01, 0.002), (0.0, 0.001)]

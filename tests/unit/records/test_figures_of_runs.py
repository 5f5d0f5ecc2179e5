"""Figures of a run, as values: what is shown is what the rows say, in PNG, on the page and in W&B alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.figures.diagram import Diagram, Numbers
from largebatch.records.figures.layer_maps import layer_maps
from largebatch.records.figures.run_figures import draw_run, run_figures
from largebatch.records.figures.run_metrics import KEYS, is_drawn
from largebatch.records.metric_keys import metric_key
from largebatch.records.rows.columns import columns_of
from largebatch.records.rows.row_file import Row

BATCH, SAMPLES_PER_EPOCH = 32, 128


def training_row(step: int) -> Row:
    return {
        "step": step, "samples_seen": BATCH * step, "epoch": BATCH * step / SAMPLES_PER_EPOCH, "wall_s": 0.1 * step,
        "train/loss": 1 / step, "train/lr": 0.1 * step, "train/grad_norm": 2.0, "train/samples_per_s": 320.0,
        "time/step_s": 0.1, "time/data_s": 0.02, "time/compute_s": 0.05, "time/communication_s": 0.01,
    }  # fmt: skip


def evaluation_row(step: int, accuracy: float, loss: float = 1.0) -> Row:
    return {
        "step": step, "samples_seen": BATCH * step, "epoch": BATCH * step / SAMPLES_PER_EPOCH,
        "eval/train_loss": loss / 2, "eval/val_loss": loss,
        "eval/train_accuracy": accuracy + 0.125, "eval/val_accuracy": accuracy,
        "gap/accuracy": 0.125, "gap/accuracy_stderr": 0.01,
    }  # fmt: skip


ROWS: list[Row] = [training_row(step) for step in range(1, 9)]
ROWS += [evaluation_row(4, 0.25), evaluation_row(8, 0.5)]


def figures(rows: Sequence[Row]) -> dict[str, Diagram]:
    return {one.name: one for found in run_figures(columns_of(rows)).values() for one in found}


def lines(figure: Diagram) -> dict[str, Numbers]:
    return {line.label: line.y for line in figure.lines}


def test_the_training_figures_show_the_rows_as_they_are():
    found = figures(ROWS)
    assert lines(found["loss"]) == {
        "training batches": [1 / n for n in range(1, 9)], "training set": [0.5, 0.5], "validation set": [1.0, 1.0],
    }  # fmt: skip
    assert [line.x for line in found["loss"].lines] == [[32.0 * n for n in range(1, 9)], [128, 256], [128, 256]]
    assert lines(found["accuracy"]) == {"training set": [0.375, 0.625], "validation set": [0.25, 0.5]}
    assert lines(found["learning_rate"]) == {"learning rate": [0.1 * n for n in range(1, 9)]}


def test_the_gap_has_its_interval_and_is_told_at_the_end():
    (line,) = figures(ROWS)["generalization_gap"].lines
    assert line.label == "accuracy (fraction), at the end 0.125 ± 0.010"
    assert (line.low, line.high) == ([pytest.approx(0.1054)] * 2, [pytest.approx(0.1446)] * 2)
    easier = [evaluation_row(4, 0.25) | {"gap/accuracy": -0.1}]
    assert "validation samples are easier" in figures(easier)["generalization_gap"].caption
    assert figures([*ROWS, ROWS[-1] | {"gap/is_augmented": 1}])["generalization_gap"].title.endswith("augmented")


def test_every_figure_has_named_axes_the_whole_run_and_epochs():
    for figure in figures(ROWS).values():
        assert (figure.x.label, figure.x.low, figure.x.high) == ("samples seen", 0, pytest.approx(1.02 * 256))
        assert len(figure.y.label) > 2
        assert figure.samples_per_epoch == SAMPLES_PER_EPOCH
    assert figures([{"step": 1, "samples_seen": 8, "train/loss": 1.0}])["loss"].samples_per_epoch is None


def test_the_parts_of_a_step_are_stacked_up_to_the_whole_step():
    parts = figures(ROWS)["step_time"].lines
    assert {line.style for line in parts} == {"stack"}
    means = {line.label: np.mean(line.y) for line in parts}
    assert means == pytest.approx({"data": 0.02, "compute": 0.05, "communication": 0.01, "other": 0.02})
    (alone, *_) = figures(ROWS[:1])["step_time"].lines
    assert (alone.x, alone.y) == ([0.0, 32.0], [0.02, 0.02]), "an area needs two points"


def test_one_slow_step_is_named_and_does_not_flatten_the_others():
    slow: Row = training_row(1) | {"time/compute_s": 2.94, "time/step_s": 3.0}
    figure = figures([slow, *ROWS[1:]])["step_time"]
    assert figure.y.high == pytest.approx(0.15)
    assert "The peak of 3 s is cut off." in figure.caption
    assert figures(ROWS)["step_time"].y.high is None


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (("train/loss",), ["loss"]),
        (("train/loss", "train/lr"), ["loss", "learning_rate"]),
        (("eval/val_accuracy",), ["accuracy"]),
        (("train/samples_per_s",), ["throughput"]),
        (("train/global_batch_size", "noise_scale/trace"), []),
        ((), []),
    ],
)
def test_a_figure_without_data_is_left_out(keys: tuple[str, ...], names: list[str]):
    always = ("step", "samples_seen", "epoch")
    rows = [{key: row[key] for key in (*always, *keys) if key in row} for row in ROWS]
    assert list(figures(rows)) == names
    assert figures([{"step": 1, "samples_seen": 32, "train/loss": math.nan}]) == {}


def test_values_that_are_not_finite_are_counted_and_not_drawn():
    odd: list[Row] = [training_row(9) | {"train/loss": math.inf}, training_row(10) | {"train/loss": math.nan}]
    losses = lines(figures(ROWS + odd)["loss"])["training batches (2 not finite)"]
    assert losses[-2:] == [None, None]


def test_many_rows_are_faint_under_their_smoothed_course():
    figure = figures([training_row(step) for step in range(1, 201)])["loss"]
    raw, smoothed = figure.lines
    losses = [1 / n for n in range(1, 201)]
    assert (raw.style, raw.y, raw.series) == ("faint", losses, smoothed.series)
    assert (smoothed.label, smoothed.y) == ("training batches, smoothed", smooth(np.array(losses), 200 / 40).tolist())
    assert figure.y.log  # from 1 to 1/200


def test_of_very_many_rows_no_extreme_is_lost_and_the_figure_stays_small():
    values = np.random.default_rng(0).normal(size=5000)
    rows: list[Row] = [
        {"step": at, "samples_seen": at, "train/grad_norm": value, "train/lr": value}
        for at, value in enumerate(values, 1)
    ]
    found = figures(rows)
    raw, smoothed = found["grad_norm"].lines
    (rate,) = found["learning_rate"].lines
    assert (len(raw.x), len(smoothed.x), len(rate.x)) == (1000, 500, 500)
    ends = (values.min(), values.max())
    assert (min(raw.y), max(raw.y)) == (min(rate.low or ()), max(rate.high or ())) == ends


def test_an_accuracy_stays_linear_however_small_it_was():
    found = figures([evaluation_row(1, 0.001, loss=0.01), evaluation_row(2, 0.8, loss=2.0)])
    assert (found["accuracy"].y.log, found["loss"].y.log) == (False, True)


def test_the_smoothed_course_is_the_weighted_mean_of_its_formula():
    y = np.array([3.0, np.nan, 1.0, 4.0, 1.0])
    keep = 1 - 1 / 2.5
    for i, mean in enumerate(smooth(y, 2.5)):
        weights = np.array([0.0 if np.isnan(y[j]) else keep ** (i - j) for j in range(i + 1)])
        assert mean == pytest.approx(np.dot(weights, np.nan_to_num(y[: i + 1])) / weights.sum(), rel=1e-14)
    assert np.isnan(smooth(np.array([np.nan, 1.0]), 2.0)[0])


@pytest.mark.parametrize("rows", [ROWS, [{**ROWS[0], "samples_seen": 0, "epoch": 0.0}]])
def test_the_pictures_parse_whatever_the_number_of_rows(tmp_path: Path, rows: list[Row]):
    paths = draw_run(columns_of(rows), tmp_path / "plots", title=r"costs $\frac$")  # a dollar is no formula
    assert [path.name for path in paths] == ["training.png", "time.png"]
    for path in paths:
        assert imread(path).shape[0] > 500
        assert imread(path).std() > 0.01  # not blank
    assert draw_run(columns_of([]), tmp_path / "none", title="run") == []
    assert not (tmp_path / "none").exists()


def test_a_batch_that_changes_has_a_figure_in_steps():
    rows: list[Row] = [{"step": n, "samples_seen": 8 * n, "train/global_batch_size": 8 * (1 + n // 2)} for n in (1, 2)]
    (line,) = figures(rows)["global_batch"].lines
    assert (line.style, line.y) == ("steps", [8, 16])
    assert figures(rows[:1]) == {}


NOISE: list[Row] = [
    {"step": 1, "samples_seen": 8, "train/global_batch_size": 8, "noise_scale/trace": 3.0},
    {"step": 2, "samples_seen": 16, "train/global_batch_size": 8},
    *(
        {"step": step, "samples_seen": 8 * step, "noise_scale/b_simple": value, "noise_scale/ci_low": low,
         "noise_scale/ci_high": high}
        for step, value, low, high in ((2, 20.0, 10.0, 40.0), (3, 30.0, 20.0, 50.0))
    ),
]  # fmt: skip


def test_the_noise_scale_has_its_interval_its_groups_and_the_batch_beside_it():
    found = run_figures(columns_of(NOISE))
    assert list(found) == ["noise_scale"]
    (figure,) = found["noise_scale"]
    assert figure.y.log
    scale, batch = figure.lines
    assert (scale.x, scale.y, scale.low, scale.high) == ([16, 24], [20, 30], [10, 20], [40, 50])
    assert (batch.label, batch.y, batch.style) == ("global batch", [8, 8], "steps")
    of_group: Row = {"step": 3, "samples_seen": 24, "noise_scale/head/trace": 1.0, "noise_scale/head/b_simple": 5.0}
    assert lines(figures([*NOISE, of_group])["noise_scale"]) == {
        "gradient noise scale": [20, 30], "head": [5], "global batch": [8, 8],
    }  # fmt: skip
    assert list(lines(figures([NOISE[0], of_group])["noise_scale"])) == ["head", "global batch"]
    own = {
        f"noise_scale/optimizer/{end}": value for end, value in (("b_simple", 9.0), ("ci_low", 4.0), ("ci_high", 15.0))
    }
    both = figures([*NOISE, {**of_group, **own}])["noise_scale"]
    assert list(lines(both)) == ["gradient noise scale", "in the optimizer's geometry", "head", "global batch"]
    assert (both.lines[1].low, both.lines[1].high) == ([4], [15])
    assert "In the optimizer's geometry: tr(PΣ) / G'PG" in both.caption
    assert "geometry" not in figure.caption


COMMUNICATION: list[Row] = [
    {"step": 1, "samples_seen": 8, "train/loss": 1.0},
    {"step": 2, "samples_seen": 16, "communication/total_s": 0.004, "communication/exposed_s": 0.001,
     "communication/share_of_step": 0.1, "communication/straggler_wait_s": 0.0005, "communication/predicted_s": 0.003},
    {"step": 4, "samples_seen": 32, "communication/total_s": 0.006, "communication/exposed_s": 0.002,
     "communication/share_of_step": 0.2, "communication/straggler_wait_s": 0.0001},
]  # fmt: skip


def test_exposed_and_hidden_communication_are_stacked_to_the_total_beside_their_share():
    parts, share = run_figures(columns_of(COMMUNICATION))["communication"]
    assert [line.style for line in parts.lines[:2]] == ["stack", "stack"]
    assert lines(parts) == {
        "exposed": [0.001, 0.002], "hidden": [0.003, 0.004], "predicted from latency and bandwidth": [0.003],
        "wait of the fastest rank for the slowest": [0.0005, 0.0001],
    }  # fmt: skip
    assert share.lines[0].y == [0.1, 0.2]
    assert "communication" not in run_figures(columns_of(COMMUNICATION[:1]))
    assert figures(COMMUNICATION[:2])["communication"].lines[0].x == [0, 16], "one measurement is an area, too"
    torn = [*COMMUNICATION, {"step": 5, "samples_seen": 40, "communication/total_s": 0.01}]
    assert list(lines(figures(torn)["communication"]))[:2] == ["exposed", "exposed and hidden"]


def test_eigenvalues_stand_beside_the_stability_limit_where_it_is_near():
    rows: list[Row] = [
        {"step": n, "samples_seen": 8 * n, "train/lr": lr, "sharpness/lambda_max": 10.0 * n, "sharpness/trace": 50.0,
         "sharpness/trace_stderr": 2.0}
        for n, lr in ((1, 0.0), (2, 0.1), (3, 0.01))
    ]  # fmt: skip
    top, trace = run_figures(columns_of(rows))["sharpness"]
    assert lines(top) == {"largest Hessian eigenvalue": [10, 20, 30], "2 / learning rate": [None, 20.0, None]}
    assert trace.lines[0].label == "trace, at the end 50.000 ± 2.000"
    assert list(lines(figures([rows[0]])["lambda_max"])) == ["largest Hessian eigenvalue"]


LAYERS: list[Row] = [
    {"step": 1, "samples_seen": 8, "trust_ratio/a": 0.5, "trust_ratio/b": 2.0, "update_to_weight/a": math.nan},
    {"step": 2, "samples_seen": 24, "trust_ratio/a": 0.0, "trust_ratio/b": math.inf, "update_to_weight/a": 0.1},
]


def test_a_map_has_a_row_per_layer_and_a_column_per_measurement():
    ratios, updates = layer_maps(LAYERS, title="run")
    # Zero and infinity have the colours of the ends.
    assert (ratios.name, ratios.values, ratios.z.log) == ("trust_ratio", [[0.5, 0.5], [2.0, 2.0]], True)
    assert (ratios.row_names, ratios.columns) == (["a", "b"], [8, 24])
    assert (updates.name, updates.values) == ("update_to_weight", [[None, 0.1]])
    assert layer_maps([{"step": 1, "samples_seen": 4}], title="run") == []
    assert layer_maps([LAYERS[0] | {"trust_ratio/a": -1.0, "trust_ratio/b": 0.0}], title="run") == []


def test_rows_are_drawn_in_the_order_of_samples():
    (line,) = figures([ROWS[2], ROWS[0], ROWS[1]])["learning_rate"].lines
    assert (line.x, line.y) == ([32, 64, 96], [0.1, 0.2, pytest.approx(0.3)])


def test_every_key_of_a_figure_is_written_by_an_observer_and_kept_for_pictures():
    assert [key for key in KEYS if metric_key(key) is None or not is_drawn(key)] == []

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.figures import plot_comparison, plot_run
from largebatch.records.figures.comparison_figure import comparison_figure
from largebatch.records.figures.plots import time_figure, training_figure
from largebatch.records.rows.columns import columns_of
from largebatch.records.rows.row_file import Row
from largebatch.records.rows.series import series

BATCH, SAMPLES_PER_EPOCH = 32, 128


def training_row(step: int) -> Row:
    return {
        "step": step, "samples_seen": BATCH * step, "epoch": BATCH * step / SAMPLES_PER_EPOCH, "wall_s": 0.1 * step,
        "train/loss": 1 / step, "train/lr": 0.1 * step, "train/grad_norm": 2.0, "train/samples_per_s": 320.0,
        "time/step_s": 0.1, "time/data_s": 0.02, "time/compute_s": 0.05, "time/communication_s": 0.01,
    }  # fmt: skip


def evaluation_row(step: int, accuracy: float, loss: float = 1.0, batch: int = BATCH) -> Row:
    return {
        "step": step, "samples_seen": batch * step, "epoch": batch * step / SAMPLES_PER_EPOCH,
        "eval/train_loss": loss / 2, "eval/val_loss": loss,
        "eval/train_accuracy": accuracy + 0.125, "eval/val_accuracy": accuracy,
        "gap/accuracy": 0.125, "gap/accuracy_stderr": 0.01,
    }  # fmt: skip


ROWS: list[Row] = [training_row(step) for step in range(1, 9)]
ROWS += [evaluation_row(4, 0.25), evaluation_row(8, 0.5)]


def label(text: str, figure: Figure | None) -> Axes:
    """The panel whose y axis is called so."""
    assert figure is not None
    (ax,) = [ax for ax in figure.axes if ax.get_ylabel().startswith(text)]
    return ax


def points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(*np.array(line.get_data()).tolist(), strict=True))


def lines(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): points(line) for line in ax.get_lines()}


def outline(area: Collection) -> np.ndarray:
    """[corners, 2] of a filled area."""
    return np.array(area.get_paths()[0].vertices)


def test_the_training_figure_shows_the_rows_as_they_are() -> None:
    figure = training_figure(columns_of(ROWS), "run")
    assert lines(label("loss", figure)) == {
        "training batches": [(32 * n, 1 / n) for n in range(1, 9)],
        "training set": [(128, 0.5), (256, 0.5)],
        "validation set": [(128, 1.0), (256, 1.0)],
    }
    assert lines(label("accuracy", figure)) == {
        "training set": [(128, 0.375), (256, 0.625)],
        "validation set": [(128, 0.25), (256, 0.5)],
    }
    (rates,) = lines(label("learning rate", figure)).values()
    assert rates == [(32 * n, 0.1 * n) for n in range(1, 9)]


def test_the_gap_is_a_band_from_validation_to_training_accuracy() -> None:
    ax = label("accuracy", training_figure(columns_of(ROWS), "run"))
    (band,) = ax.collections
    assert band.get_label() == "gap, at the end 0.125 ± 0.010"
    corners = {(x, y) for x, y in outline(band).tolist()}
    assert {(128, 0.25), (128, 0.375), (256, 0.5), (256, 0.625)} <= corners


def test_every_panel_has_labelled_axes_and_epochs_on_top() -> None:
    for figure in (training_figure(columns_of(ROWS), "run"), time_figure(columns_of(ROWS), "run")):
        assert figure is not None
        assert figure.get_suptitle() == "run"
        for ax in figure.axes:
            assert ax.get_xlabel() == "samples seen"
            assert len(ax.get_ylabel()) > 4
            (top,) = ax.child_axes
            assert top.get_xlabel() == "epochs"
    assert figure is not None
    figure.set_layout_engine("none")  # the top axis takes its limits when it is drawn; a layout would draw again
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert np.allclose(np.array(ax.get_xlim()) / SAMPLES_PER_EPOCH, ax.child_axes[0].get_xlim())


def test_the_parts_of_a_step_are_stacked_up_to_the_whole_step() -> None:
    ax = label("time per step", time_figure(columns_of(ROWS), "run"))
    tops = {str(part.get_label()): outline(part)[:, 1].max() for part in ax.collections}
    assert tops == pytest.approx({"data": 0.02, "compute": 0.07, "communication": 0.08, "other": 0.1})


def test_one_slow_step_is_named_and_does_not_flatten_the_others() -> None:
    slow: Row = training_row(1) | {"time/compute_s": 2.94, "time/step_s": 3.0}
    ax = label("time per step", time_figure(columns_of([slow, *ROWS[1:]]), "run"))
    assert ax.get_ylim() == pytest.approx((0, 0.15))
    assert "peak of 3.0 s cut off" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("keys", "num_panels"),
    [
        (("train/loss",), 1),
        (("train/loss", "train/lr"), 2),
        (("eval/val_accuracy",), 1),
        (("train/samples_per_s",), 0),
        ((), 0),
    ],
)
def test_a_panel_without_data_is_left_out(keys: tuple[str, ...], num_panels: int) -> None:
    always = ("step", "samples_seen", "epoch")
    rows = [{key: row[key] for key in (*always, *keys) if key in row} for row in ROWS]
    figure = training_figure(columns_of(rows), "run")
    assert (len(figure.axes) if figure else 0) == num_panels


def test_values_that_are_not_finite_are_counted_and_do_not_stretch_the_axis() -> None:
    odd: list[Row] = [training_row(9) | {"train/loss": math.inf}, training_row(10) | {"train/loss": math.nan}]
    ax = label("loss", training_figure(columns_of(ROWS + odd), "run"))
    assert "training batches (2 not finite)" in lines(ax)
    assert ax.get_ylim()[1] < 1.2


def test_many_rows_are_thin_under_their_smoothed_course() -> None:
    ax = label("loss", training_figure(columns_of([training_row(step) for step in range(1, 201)]), "run"))
    thin, smoothed = ax.get_lines()
    assert thin.get_linewidth() < smoothed.get_linewidth()
    losses = [1 / n for n in range(1, 201)]
    assert [y for _, y in points(thin)] == losses
    assert [y for _, y in points(smoothed)] == smooth(np.array(losses), 200 / 40).tolist()
    assert ax.get_yscale() == "log"  # from 1 to 1/200


def test_an_accuracy_stays_linear_however_small_it_was() -> None:
    rows = [evaluation_row(1, 0.001, loss=0.01), evaluation_row(2, 0.8, loss=2.0)]
    figure = training_figure(columns_of(rows), "run")
    assert (label("accuracy", figure).get_yscale(), label("loss", figure).get_yscale()) == ("linear", "log")


def test_the_smoothed_course_is_the_weighted_mean_of_its_formula() -> None:
    y = np.array([3.0, np.nan, 1.0, 4.0, 1.0])
    keep = 1 - 1 / 2.5
    for i, mean in enumerate(smooth(y, 2.5)):
        weights = np.array([0.0 if np.isnan(y[j]) else keep ** (i - j) for j in range(i + 1)])
        assert mean == pytest.approx(np.dot(weights, np.nan_to_num(y[: i + 1])) / weights.sum(), rel=1e-14)
    assert np.isnan(smooth(np.array([np.nan, 1.0]), 2.0)[0])


@pytest.mark.parametrize("rows", [ROWS, [{**ROWS[0], "samples_seen": 0, "epoch": 0.0}]])
def test_the_pictures_parse_whatever_the_number_of_rows(tmp_path: Path, rows: list[Row]) -> None:
    paths = plot_run(columns_of(rows), tmp_path / "plots", r"costs $\frac$")  # a dollar is no formula
    assert [path.name for path in paths] == ["training.png", "time.png"]
    for path in paths:
        assert imread(path).shape[0] > 500
        assert imread(path).std() > 0.01  # not blank


def test_no_rows_give_no_picture(tmp_path: Path) -> None:
    assert plot_run(columns_of([]), tmp_path, "run") == []
    assert time_figure(columns_of(ROWS[-1:]), "an evaluation has no times") is None
    assert plot_run(columns_of([{"step": 1, "samples_seen": 32, "train/loss": math.nan}]), tmp_path, "run") == []
    assert list(tmp_path.iterdir()) == []


RUNS: list[tuple[str, list[Row]]] = [
    ("batch 32", [evaluation_row(n, 0.5 + 0.01 * n) for n in (4, 8)]),
    ("batch 32", [evaluation_row(n, 0.7 + 0.01 * n) for n in (4, 8)]),
    ("batch 256", [evaluation_row(n, 0.4, batch=256) for n in (1,)]),
]


def test_runs_of_one_label_are_their_mean_with_a_band_from_least_to_greatest() -> None:
    figure = comparison_figure(RUNS, "title")
    assert figure is not None
    against_samples, against_steps = figure.axes[:2]
    mean, other = [points(line) for line in against_samples.get_lines()[:2]]
    assert mean == [(128, pytest.approx(0.36)), (256, pytest.approx(0.32))], "the error is 1 - accuracy"
    assert other == [(256, pytest.approx(0.6))]
    assert [x for x, _ in points(against_steps.get_lines()[0])] == [4, 8]
    (band,) = against_samples.collections  # a single run has none
    assert {(x, round(y, 6)) for x, y in outline(band).tolist()} == {
        (128, 0.46), (128, 0.26), (256, 0.42), (256, 0.22),
    }  # fmt: skip


def test_seeds_evaluated_at_other_places_are_compared_where_both_have_values() -> None:
    first, second = [[evaluation_row(n, accuracy) for n, accuracy in run] for run in (
        [(1, 0.0), (3, 0.5)], [(2, 1.0), (4, 0.0)],
    )]  # fmt: skip
    figure = comparison_figure([("a", first), ("a", second)], "title")
    assert figure is not None
    # over steps 2 to 3: means of (0.75, 0) and (0.5, 0.5)
    assert points(figure.axes[1].get_lines()[0]) == [(2, 0.375), (3, 0.5)]


def test_a_label_has_one_colour_in_every_panel_and_in_the_legend() -> None:
    figure = comparison_figure(RUNS, "title")
    assert figure is not None
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["batch 32", "batch 256"]
    colours = [to_hex(line.get_color()) for line in legend.get_lines()]
    assert len(set(colours)) == 2
    for ax in figure.axes:
        assert [to_hex(line.get_color()) for line in ax.get_lines()[:2]] == colours


def test_small_errors_are_told_apart_on_a_logarithmic_axis() -> None:
    figure = comparison_figure([("a", [evaluation_row(1, 0.2), evaluation_row(8, 0.99)])], "title")
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"


def test_steps_are_logarithmic_where_runs_differ_widely_and_linear_where_not() -> None:
    for steps, scale in ((1, "log"), (8, "linear")):
        figure = comparison_figure([*RUNS[:1], ("other", [evaluation_row(steps, 0.4)])], "title")
        assert figure is not None
        assert [ax.get_xscale() for ax in figure.axes] == ["linear", scale] * 2
        assert figure.axes[0].get_xlabel() == "samples seen"
        assert figure.axes[1].get_xlabel().startswith("optimizer steps")


def test_a_comparison_is_a_picture_and_one_of_nothing_is_an_error(tmp_path: Path) -> None:
    path = plot_comparison(RUNS, tmp_path / "new" / "comparison.png", "title")
    assert path == tmp_path / "new" / "comparison.png"
    assert imread(path).std() > 0.01
    with pytest.raises(ValueError, match="None of the 1 runs has eval/val_accuracy or eval/val_loss"):
        plot_comparison([("a", ROWS[:3])], tmp_path / "none.png", "title")


def test_more_runs_than_colours_are_told_apart_by_dashes() -> None:
    figure = comparison_figure([(str(n), [evaluation_row(2, 0.1 * n)]) for n in range(9)], "title")
    assert figure is not None
    looks = [(to_hex(line.get_color()), line.get_linestyle()) for line in figure.legends[0].get_lines()]
    assert len(set(looks)) == 9


def test_rows_are_drawn_in_the_order_of_samples() -> None:
    x, y = series([ROWS[2], ROWS[0], {"train/loss": 3.0}, ROWS[1]], "train/loss")
    assert x.tolist() == [32, 64, 96]
    assert y.tolist() == [1, 1 / 2, 1 / 3]

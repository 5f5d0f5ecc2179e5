"""Figures of several runs beside each other, as values."""

from __future__ import annotations

import pytest

from largebatch.records.figures.comparison_figures import comparison_figures, large_batch_gap_figures
from largebatch.records.rows.row_file import Row


def evaluation_row(step: int, accuracy: float, batch: int = 32) -> Row:
    return {"step": step, "samples_seen": batch * step, "eval/val_loss": 1.0, "eval/val_accuracy": accuracy}


RUNS: list[tuple[str, list[Row]]] = [
    ("batch 32", [evaluation_row(n, 0.5 + 0.01 * n) for n in (4, 8)]),
    ("batch 32", [evaluation_row(n, 0.7 + 0.01 * n) for n in (4, 8)]),
    ("batch 256", [evaluation_row(n, 0.4, batch=256) for n in (1,)]),
]


def test_runs_of_one_label_are_their_mean_with_a_band_from_least_to_greatest():
    against_samples, against_steps, *of_loss = comparison_figures(RUNS)
    mean, other = against_samples.lines
    assert (mean.label, mean.x, mean.y) == ("batch 32", [128, 256], pytest.approx([0.36, 0.32])), "1 - accuracy"
    assert (mean.low, mean.high) == (pytest.approx([0.26, 0.22]), pytest.approx([0.46, 0.42]))
    assert (other.x, other.y, other.low) == ([256], pytest.approx([0.6]), None), "a single run has no band"
    assert against_steps.lines[0].x == [4, 8]
    assert len(of_loss) == 2


def test_seeds_evaluated_at_other_places_are_compared_where_both_have_values():
    first, second = [[evaluation_row(n, accuracy) for n, accuracy in run] for run in (
        [(1, 0.0), (3, 0.5)], [(2, 1.0), (4, 0.0)],
    )]  # fmt: skip
    (line,) = comparison_figures([("a", first), ("a", second)])[1].lines
    # over steps 2 to 3: means of (0.75, 0) and (0.5, 0.5)
    assert (line.x, line.y) == ([2, 3], [0.375, 0.5])


def test_small_errors_are_told_apart_on_a_logarithmic_axis():
    assert comparison_figures([("a", [evaluation_row(1, 0.2), evaluation_row(8, 0.99)])])[0].y.log


def test_steps_are_logarithmic_where_runs_differ_widely_and_linear_where_not():
    for steps, is_log in ((1, True), (8, False)):
        figures = comparison_figures([*RUNS[:1], ("other", [evaluation_row(steps, 0.4)])])
        assert [figure.x.log for figure in figures] == [False, is_log] * 2
        assert [figure.x.label for figure in figures[:2]] == ["samples seen", "optimizer steps"]


def test_a_comparison_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="None of the 1 runs has eval/val_accuracy or eval/val_loss"):
        comparison_figures([("a", [{"step": 1, "samples_seen": 8, "train/loss": 1.0}])])


def test_a_figure_of_the_gap_has_a_line_per_run_and_only_new_lows_over_the_training_loss():
    rows: list[Row] = [
        {"step": step, "samples_seen": 10 * step, "eval/train_loss": loss, "gap/loss": 0.1, "eval/val_accuracy": 0.75}
        for step, loss in ((1, 2.0), (2, 1.0), (3, 1.5), (4, 0.5))
    ]
    figures = large_batch_gap_figures({10: [rows, rows], 80: [rows]})
    across = ["samples seen", "optimizer steps", "training loss (evaluated; falls to the right)"]
    assert [figure.x.label for figure in figures] == across * 2
    over_samples, of_new_lows = figures[3], figures[5]
    assert [line.label for line in over_samples.lines] == ["batch 10 (2 runs)"] * 2 + ["batch 80 (1 run)"]
    assert [(line.x, line.y) for line in over_samples.lines] == [([10, 20, 30, 40], [0.25] * 4)] * 3
    assert (of_new_lows.lines[0].x, of_new_lows.x.falls) == ([2.0, 1.0, 0.5], True)
    assert figures[0].lines[-1].y == [0, 0], "no gap"

"""Columns of a file of rows: exact up to a number of points; beyond it no extreme is lost, and means are of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from largebatch.records.figures.run_figures import run_figures
from largebatch.records.figures.run_metrics import is_drawn
from largebatch.records.report.evaluated_runs import read_evaluated
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.run_figures import curves
from largebatch.records.rows import columns
from largebatch.records.rows.columns import columns_of, read_columns
from tests.unit.records.report_folders import write_run


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_POINTS", 64)
    monkeypatch.setattr(columns, "_FOLDED_EVERY", 16)


def write(path: Path, values: np.ndarray) -> Path:
    rows = [{"step": at, "samples_seen": 8 * at, "a": value} for at, value in enumerate(values.tolist(), start=1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("count", [1, 2, 63, 64])
def test_up_to_the_number_of_points_a_column_is_the_file(few_points: None, tmp_path: Path, count: int):
    values = np.random.default_rng(0).normal(size=count)
    column = read_columns(write(tmp_path / "m.jsonl", values), ["a", "b"].__contains__).by_name["a"]
    assert column.every == 1
    for found in (column.values, column.means, column.low, column.high):
        assert found.tolist() == values.tolist()
    assert column.samples.tolist() == [8.0 * at for at in range(1, count + 1)]


@pytest.mark.parametrize("count", [65, 66, 100, 128, 129, 131, 1000, 1003])
def test_of_more_values_means_and_extremes_are_those_of_all_and_every_nth_value_is_as_written(
    few_points: None, tmp_path: Path, count: int
):
    values = np.random.default_rng(1).normal(size=count)
    values[7] = np.nan
    read = read_columns(write(tmp_path / "m.jsonl", values), ["a"].__contains__)
    column = read.by_name["a"]
    every, points = column.every, len(column.values)
    assert every in (2, 4, 8, 16, 32)
    assert points == -(-count // every) <= 64 + 1
    groups = [values[at * every : (at + 1) * every] for at in range(points)]
    np.testing.assert_allclose(column.means, [np.nanmean(one) for one in groups], rtol=1e-12)
    assert column.low.tolist() == [np.nanmin(one) for one in groups]
    assert column.high.tolist() == [np.nanmax(one) for one in groups]
    np.testing.assert_array_equal(column.values, [one[-1] for one in groups])
    assert column.steps.tolist() == [min((at + 1) * every, count) for at in range(points)]
    assert (read.num_rows, read.steps, read.last["a"]) == (count, count, values[-1])


def test_a_spike_between_the_points_of_a_long_run_is_on_the_page(few_points: None, tmp_path: Path):
    folder = write_run(tmp_path / "a", 32, num_rows=600)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[401]["eval/val_loss"] = 50.0  # row 201 of the evaluations: no kept point
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (run,) = read_evidence([folder]).runs
    drawn = {one.name: one for one in curves([run])["training"]}["loss"]
    line = drawn.lines[-1]
    assert max(value for value in line.y if value is not None) < 3
    assert max(value for value in line.high if value is not None) == 50.0
    assert "Bands of long runs: the least and the greatest of all values." in drawn.caption
    assert run.step_s == 0.5


def test_the_picture_of_a_long_run_has_its_extremes_its_lost_values_and_the_course_of_all(
    few_points: None, tmp_path: Path
):
    """The thin line reaches every value, the smoothed one follows means: a spike counts once, not as a stretch."""
    count, losses = 1000, np.linspace(2.0, 1.0, 1000)
    losses[[300, 700]] = 9.0, np.nan
    rows = [
        {"step": at, "samples_seen": 8 * at, "train/loss": loss} for at, loss in enumerate(losses.tolist(), start=1)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = read_columns(tmp_path / "m.jsonl", is_drawn)
    (figure,) = run_figures(columns)["training"]
    raw, smoothed = figure.lines
    assert (min(raw.y), max(raw.y), len(raw.x)) == (1.0, 9.0, 2 * len(columns.column("train/loss").values))
    assert smoothed.label == "training batches, smoothed (1 not finite)"
    course = np.interp(8 * np.arange(1, count + 1), smoothed.x, smoothed.y)
    assert abs(course[290:700].max() - losses[290]) < 0.5  # the spike of 7 is one value of a stretch of 16
    assert columns_of(rows).column("train/loss").lost == 1
    assert smoothed.x[-1] == 8 * count


def test_own_metrics_are_not_kept_for_pictures(tmp_path: Path):
    row = {"step": 1, "samples_seen": 8, "train/loss": 1.0, "mine/a": 1.0, "größe": 2.0}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    assert set(read_columns(tmp_path / "m.jsonl", is_drawn).by_name) == {"train/loss"}


def planned(folder: Path, **values: int) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | values))


@pytest.mark.parametrize("place", [{"step": 10**9}, {"samples_seen": 2**40}])
def test_a_position_far_beyond_the_plan_is_named_and_squeezes_no_axis(tmp_path: Path, place: dict[str, int]):
    folder = write_run(tmp_path / "a", 32)
    (healthy,) = read_evidence([folder]).runs
    planned(folder, num_steps=healthy.steps, total_samples=healthy.samples_seen)
    row = {"step": healthy.steps, "samples_seen": healthy.samples_seen, "train/loss": 1.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row | place) + "\n")
    (run,) = read_evidence([folder]).runs
    assert (run.steps, run.samples_seen) == (healthy.steps, healthy.samples_seen)
    (told,) = run.damage
    assert told == "metrics.jsonl: a position more than twice as far as plan.json plans: line 17"
    evaluated = read_evaluated(folder)
    assert evaluated.rows[-1] == {"samples_seen": healthy.samples_seen, "step": healthy.steps}
    assert list(evaluated.faults) == [told.removeprefix("metrics.jsonl: ")]


def test_a_plan_that_no_row_fits_is_not_held_against_them(tmp_path: Path):
    folder = write_run(tmp_path / "a", 32)
    planned(folder, num_steps=1, total_samples=1)
    (run,) = read_evidence([folder]).runs
    assert (run.samples_seen, run.damage) == (8192, ())
    assert len(read_evaluated(folder).evaluations.steps) == 8

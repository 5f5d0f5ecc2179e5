"""Columns of a file of rows: exact up to a number of points; beyond it no extreme is lost, and means are of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from largebatch.run_report.reading import read_evidence
from largebatch.run_report.run_figures import curves
from largebatch.trackers import columns
from largebatch.trackers.columns import read_columns
from tests.unit.report_folders import write_run


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
    column = read_columns(write(tmp_path / "m.jsonl", values), ["a", "b"]).by_name["a"]
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
    read = read_columns(write(tmp_path / "m.jsonl", values), ["a"])
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
    drawn = {one.figure.name: one.figure for one in curves([run])["training"]}["val_loss"]
    (line,) = drawn.lines
    assert max(value for value in line.y if value is not None) < 3
    assert max(value for value in line.high if value is not None) == 50.0
    assert "Bands of long runs: the least and the greatest of all values." in drawn.caption
    assert run.step_s == 0.5

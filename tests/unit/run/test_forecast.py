"""What a run predicts of itself from the folders beside it, and what it does with folders that are broken."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import calibration_of, calibration_table, grades_in
from largebatch.run.config.reading import ConfigError
from largebatch.run.forecast import earlier_runs
from largebatch.run.forecast.conditions import conditions
from largebatch.run.forecast.earlier_runs import read_earlier
from largebatch.run.forecast.forecast import Forecast, grade_row, make_forecast
from largebatch.run.forecast.predictions import Coming, predictions
from largebatch.run.prepare import Prepared, prepare
from tests.unit.composing import compose_run

SAME = dict.fromkeys(("model", "data", "loss", "optimizer", "arithmetic", "measuring", "device", "threads"), "x") | {
    "ranks": "2", "trajectory": "t"
}  # fmt: skip
PREDICTED = {"step_time": {"value": 1.0, "low": 0.5, "high": 2.0, "measured": 1.5, "widened_by": 1.0}}


def write(folder: Path, batch: int, *, measured: dict[str, Any], given: dict[str, str] = SAME, **summary: Any) -> Path:
    folder.mkdir(parents=True)
    plan = {"global_batch_size": batch, "world_size": 2, "grad_accum_steps": 1, "max_micro_batch_size": batch // 2,
            "num_samples": 1000, "ramp": [], "conditions": given}  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "measured": measured, **summary}))
    return folder


def coming(batch: int = 32, **changed: str) -> Coming:
    return Coming(SAME | changed, batch, 2000, Shape(batch // 2, 1, batch // 2))


def four_runs(folder: Path) -> None:
    for number, batch in enumerate((8, 16, 64, 8)):
        step_s = 0.01 + 0.001 * batch / 2
        write(folder / str(number), batch, measured={"step_time": step_s, "epoch_time": step_s * 1000 / batch,
              "memory": 1e8 + 1e6 * batch / 2, "exposed_communication": 0.004})  # fmt: skip


def test_time_memory_and_communication_follow_from_runs_of_the_same_kind(tmp_path: Path):
    four_runs(tmp_path)
    found = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))
    step_s = 0.01 + 0.001 * 16
    expected = {"step_time": step_s, "epoch_time": step_s * 2000 / 32, "memory": 1.16e8, "exposed_communication": 0.004}
    assert {key: one.value for key, one in found.items()} == pytest.approx(expected, rel=1e-6)
    assert {one.kind for one in found.values()} == {"interpolated"}
    assert found["step_time"].source.startswith("4 earlier runs")


@pytest.mark.parametrize("name", [name for name in SAME if name != "trajectory"])
def test_runs_that_differ_in_what_time_depends_on_predict_nothing(tmp_path: Path, name: str):
    four_runs(tmp_path)
    assert predictions(coming(**{name: "other"}), read_earlier(tmp_path, tmp_path / "own")) == {}


def test_the_final_loss_comes_from_runs_that_differ_in_the_seed_alone(tmp_path: Path):
    for number, loss in enumerate((0.5, 0.52, 0.48)):
        write(tmp_path / str(number), 32, measured={}, **{"eval/val_loss": loss})
    write(tmp_path / "stopped", 32, measured={}, status="stopped", **{"eval/val_loss": 3.0})
    found = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["final_loss"]
    assert found.value == pytest.approx((0.5 * 0.52 * 0.48) ** (1 / 3))
    assert found.low < 0.48
    assert found.high > 0.52
    assert predictions(coming(trajectory="other"), read_earlier(tmp_path, tmp_path / "own")) == {}


def test_grades_of_earlier_runs_widen_the_interval(tmp_path: Path):
    for number, took in enumerate((1.0, 1.1, 0.9, 1.05)):
        write(tmp_path / str(number), 32, measured={"step_time": took})
    narrow = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["step_time"]
    bad = {"step_time": PREDICTED["step_time"] | {"measured": 4.0}}  # twice as far as its interval reaches
    write(tmp_path / "graded", 32, measured={}, predictions=bad)
    wide = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["step_time"]
    assert wide.widened_by == pytest.approx(2.0)
    assert math.log(wide.high / wide.value) == pytest.approx(2 * math.log(narrow.high / narrow.value))
    other_machine = predictions(coming(device="y"), read_earlier(tmp_path, tmp_path / "own"))
    assert other_machine == {}


def broken(folder: Path) -> dict[str, str]:
    """Names of broken folders and a word of the reason."""
    write(folder / "half", 8, measured={})
    (folder / "half/summary.json").write_text('{"status": "fin')
    write(folder / "list", 8, measured={})
    (folder / "list/plan.json").write_text("[1]")
    write(folder / "huge", 8, measured={})
    (folder / "huge/summary.json").write_bytes(b" " * (2**20 + 1))
    write(folder / "deep", 8, measured={})
    (folder / "deep/plan.json").write_text("[" * 100_000)
    write(folder / "negative", -8, measured={"step_time": 1.0})
    write(folder / "no_plan", 8, measured={})
    (folder / "no_plan/plan.json").unlink()
    write(folder / "pipe", 8, measured={})
    (folder / "pipe/plan.json").unlink()
    os.mkfifo(folder / "pipe/plan.json")
    write(folder / "odd", 8, measured={"step_time": "fast", "memory": float("nan"), "epoch_time": -1})
    return {"half": "summary.json", "list": "object", "huge": "more than", "deep": "JSON", "negative": "whole number",
            "no_plan": "missing", "pipe": "pipe"}  # fmt: skip


def test_broken_folders_are_left_out_by_name_and_the_others_still_predict(tmp_path: Path):
    reasons = broken(tmp_path)
    four_runs(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path)
    earlier = read_earlier(tmp_path, tmp_path / "own")
    assert {one.partition(":")[0] for one in earlier.left_out} == set(reasons)
    for line in earlier.left_out:
        assert reasons[line.partition(":")[0]] in line
    assert "step_time" in predictions(coming(), earlier)


def test_only_the_newest_runs_are_read_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(earlier_runs, "MOST_RUNS", 3)
    for number in range(8):
        folder = write(tmp_path / f"{7 - number}", 8, measured={"step_time": 1.0})
        os.utime(folder / "summary.json", (number, number))
    read, opened = earlier_runs.read_regular, []
    monkeypatch.setattr(earlier_runs, "read_regular", lambda path, **how: (opened.append(path), read(path, **how))[1])
    earlier = read_earlier(tmp_path, tmp_path / "1")
    assert [run.name for run in earlier.runs] == ["3", "2", "0"], "oldest first, without the run's own"
    assert (len(opened), earlier.num_more) == (6, 4)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(compose_run("data=synthetic", "model=linear"), {}, tries=False)


def test_conditions_are_those_of_time_and_not_of_the_seed_or_the_batch():
    def of(*overrides: str) -> dict[str, str]:
        return conditions(prepare(compose_run("data=synthetic", "model=linear", *overrides), {}, tries=False))

    usual = of()
    assert of("seed=5", "run.name=other", "launcher.heartbeat_s=6") == usual
    for overrides, changed in (
        (("batch.total=64",), {"trajectory"}),
        (("optimizer.momentum=0.8",), {"trajectory"}),
        (("optimizer.momentum=0.0", "optimizer.nesterov=false"), {"optimizer", "trajectory"}),
        (("model=mlp", "cost.device_hour=2"), {"model", "trajectory"}),
        (("clip_norm=1", "observers.metrics.every=1"), {"arithmetic", "measuring", "trajectory"}),
    ):
        found = of(*overrides)
        assert {name for name in usual if found[name] != usual[name]} == changed, overrides


def test_a_defect_of_the_prediction_does_not_end_a_run(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("largebatch.run.forecast.forecast.read_earlier", lambda *_: 1 / 0)
    found = make_forecast(prepared, tmp_path / "own")
    assert found.notes() == ["nothing is predicted: ZeroDivisionError: division by zero"]
    assert found.graded({"step_time": 1.0}) == {}


def test_nothing_is_said_where_nothing_is_known(prepared: Prepared, tmp_path: Path):
    found = make_forecast(prepared, tmp_path / "own")
    assert found.notes() == []
    assert list(found.plan_entries()) == ["conditions"]


def test_a_folder_to_predict_from_must_exist(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"run\.predict_from=nowhere: is no folder"):
        prepare(compose_run("data=synthetic", "model=linear", "run.predict_from=nowhere"), {}, tries=False)
    with pytest.raises(ConfigError, match=r"cost\.currency=EUR: has no effect without cost\.device_hour"):
        prepare(compose_run("data=synthetic", "model=linear", "cost.currency=EUR"), {}, tries=False)


def test_the_summary_says_what_was_inside_and_the_table_counts_it(tmp_path: Path):
    four_runs(tmp_path)
    found = Forecast(SAME, predictions(coming(), read_earlier(tmp_path, tmp_path / "own")))
    grades = found.graded({"step_time": 0.026, "memory": 5e8, "data_wait": 1.0})
    assert {key: (one["inside"], round(one["ratio"], 6)) for key, one in grades.items()} == {
        "step_time": (grades["step_time"]["low"] <= 0.026, 1.0), "memory": (False, round(5e8 / 1.16e8, 6))
    }  # fmt: skip
    assert "peak memory of a process 0.466 GiB, OUTSIDE" in grade_row(grades)
    one = {"predictions": PREDICTED}
    table = calibration_table(calibration_of([one, one, {}, {"predictions": {"step_time": {"value": "x"}, "mine": 3}}]))
    assert table.rows == [("time of a step", "2", "50.0%", "1.500", "100%", "16% to 100%")]
    assert grades_in({"predictions": {"step_time": PREDICTED["step_time"] | {"low": 3.0}}}) == []


def test_a_run_waits_for_no_import_of_the_report_or_of_scipy():
    names = (
        "[name for name in sys.modules if name.startswith(('largebatch.records.report', 'scipy.special', 'plotly'))]"
    )
    told = f"import sys, largebatch.run.forecast.predictions, largebatch.run.forecast.earlier_runs; print({names})"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"

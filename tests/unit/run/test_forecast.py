"""What a run predicts of itself from the folders beside it, and what it does with folders that are broken."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from largebatch.diagnostics.predictions.shape import Shape
from largebatch.records.graded_runs import calibration_of, calibration_table, ends_of, grades_in
from largebatch.run.config.findings import Findings
from largebatch.run.config.reading import ConfigError, parse_config, public_values
from largebatch.run.forecast import earlier_runs
from largebatch.run.forecast.conditions import conditions
from largebatch.run.forecast.earlier_runs import read_earlier
from largebatch.run.forecast.forecast import Forecast, grade_row, make_forecast
from largebatch.run.forecast.predictions import Coming, Prediction, predictions
from largebatch.run.precision.decisions import decide
from largebatch.run.prepare import _parts, prepare
from tests.unit.composing import compose_run

SAME = dict.fromkeys(("model", "data", "loss", "optimizer", "arithmetic", "measuring", "device", "threads"), "x") | {
    "ranks": "2", "trajectory": "t"
}  # fmt: skip
PREDICTED = {"step_time": {"value": 1.0, "low": 0.5, "high": 2.0, "measured": 1.5, "widened_by": 1.0}}


def write(folder: Path, batch: int, *, measured: dict[str, Any], given: dict[str, str] = SAME, **summary: Any) -> Path:
    folder.mkdir(parents=True)
    given = {"seed": folder.name} | given
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
    write(tmp_path / "again", 32, measured={}, given=SAME | {"seed": "2"}, **{"eval/val_loss": 0.48})
    found = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["final_loss"]
    assert found.source.startswith("3 earlier runs"), "a seed that was repeated is one draw"
    assert found.value == pytest.approx((0.5 * 0.52 * 0.48) ** (1 / 3))
    assert found.low < 0.48
    assert found.high > 0.52
    assert predictions(coming(trajectory="other"), read_earlier(tmp_path, tmp_path / "own")) == {}


def test_the_gap_at_the_end_is_predicted_as_a_ratio_and_graded(tmp_path: Path):
    """As a difference it may be 0 or below; 95 % of new seeds are to lie inside."""
    draw, inside, count = np.random.default_rng(0), 0, 60
    for number in range(count):
        ratios = np.exp(0.1 + 0.05 * draw.standard_normal(6))
        for seed, ratio in enumerate(ratios[:5]):
            losses = {"eval/val_loss": 0.5 * ratio, "eval/train_loss": 0.5}
            write(tmp_path / f"{number}/{seed}", 32, measured={}, **losses)
        made = Forecast(SAME, predictions(coming(), read_earlier(tmp_path / str(number), tmp_path / "own")))
        ends = ends_of({"status": "finished", "eval/val_loss": 0.4 * ratios[5], "eval/train_loss": 0.4})
        one = made.graded(ends)["gap_ratio"]
        assert one["value"] == pytest.approx(math.exp(np.log(ratios[:5]).mean()))
        inside += one["inside"]
    assert 0.87 <= inside / count <= 1  # of 60 draws a share of 0.95 has a standard error of 0.028
    assert "validation / training loss" in "".join(made.notes())


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


def test_values_that_agree_to_the_last_digit_prove_no_interval_without_width(tmp_path: Path):
    for number in range(3):
        write(tmp_path / str(number), 32, measured={"memory": 2**30})
    one = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["memory"]
    assert (one.low, one.high) == pytest.approx((2**30 * 0.999, 2**30 * 1.001), rel=1e-5)
    off = {"memory": {"value": 2**30, "low": 2**30, "high": 2**30, "measured": 2**30 * 1.01, "widened_by": 1.0}}
    write(tmp_path / "graded", 32, measured={}, predictions=off)
    later = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))["memory"]
    assert later.high == pytest.approx(2**30 * 1.01), "one wrong byte must not end all later predictions"


def test_an_absurd_grade_ends_the_prediction_of_its_quantity_alone(tmp_path: Path):
    four_runs(tmp_path)
    absurd = {"memory": {"value": 1e-200, "low": 0.99e-200, "high": 1.01e-200, "measured": 1e200}}
    write(tmp_path / "graded", 32, measured={"memory": 1e9}, predictions=absurd)
    found = predictions(coming(), read_earlier(tmp_path, tmp_path / "own"))
    assert set(found) == {"step_time", "epoch_time", "exposed_communication"}


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
    (folder / "no_plan/plan.json").unlink()  # a summary of something else
    write(folder / "pipe", 8, measured={})
    (folder / "pipe/plan.json").unlink()
    os.mkfifo(folder / "pipe/plan.json")
    write(folder / "odd", 8, measured={"step_time": "fast", "memory": float("nan"), "epoch_time": -1})
    return {"half": "summary.json", "list": "object", "huge": "more than", "deep": "JSON", "negative": "whole number",
            "pipe": "pipe"}  # fmt: skip


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


def test_a_run_of_the_same_name_elsewhere_is_another_one_and_a_link_to_its_own_folder_is_not(tmp_path: Path):
    four_runs(tmp_path / "runs")
    (tmp_path / "linked").symlink_to(tmp_path / "runs/3")
    elsewhere, linked = (read_earlier(tmp_path / "runs", tmp_path / own) for own in ("mine/3", "linked"))
    assert (len(elsewhere.runs), len(linked.runs)) == (4, 3)


def test_a_crowded_folder_costs_no_more_and_says_that_it_was_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(earlier_runs, "MOST_FOLDERS", 3)
    four_runs(tmp_path)
    for number in range(9):
        (tmp_path / f"file {number}").touch()
    earlier = read_earlier(tmp_path, tmp_path / "own")
    assert len(earlier.runs) == 3
    assert "3 folders of it were looked into" in earlier.left_out[0]


@pytest.fixture(scope="module")
def prepared() -> Any:
    """What a forecast reads of a run that is prepared; a model would cost seconds."""
    composed = compose_run("data=synthetic", "model=linear")
    parts = _parts(parse_config(composed), {}, Findings())
    assert parts.numbers is not None
    decisions = decide(parts.kind, parts.given, nn.Linear(2, 2), parts.numbers)
    public = public_values(composed)
    return SimpleNamespace(
        config=parts.config, public=public, numbers=parts.numbers, decisions=decisions, content={"train": "abc"}
    )


def but(prepared: Any, **others: Any) -> Any:
    return SimpleNamespace(**(vars(prepared) | others))


def test_conditions_are_those_of_time_and_not_of_the_seed_or_the_batch(prepared: Any):
    def of(*overrides: str) -> dict[str, str]:
        config = compose_run("data=synthetic", "model=linear", *overrides)
        return conditions(but(prepared, config=parse_config(config), public=public_values(config)))

    usual = of()
    assert of("seed=5", "run.name=other", "launcher.heartbeat_s=6") == usual | {"seed": "5"}
    for overrides, changed in (
        (("batch.total=64",), {"trajectory"}),
        (("optimizer.momentum=0.8",), {"trajectory"}),
        (("optimizer.momentum=0.0", "optimizer.nesterov=false"), {"optimizer", "trajectory"}),
        (("model=mlp", "cost.device_hour=2"), {"model", "trajectory"}),
        (("clip_norm=1", "observers.metrics.every=1"), {"arithmetic", "measuring", "trajectory"}),
        (("observers.noise_scale.geometry=optimizer",), {"measuring"}),
        (("observers.sharpness.every=1ep",), {"measuring"}),  # memory
        (("observers.sharpness.samples=8", "observers.early_stopping.min_delta=0.1", "logger.plots=false"), set()),
        (("logger=none",), {"measuring"}),  # memory of the process
        (("data.num_workers=2",), {"data", "trajectory"}),
        (
            (
                "resume=auto",
                "resume_allow=[length]",
            ),
            {"trajectory"},
        ),  # may have begun as another run
    ):
        found = of(*overrides)
        assert {name for name in usual if found[name] != usual[name]} == changed, overrides


def test_a_defect_of_the_prediction_does_not_end_a_run(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("largebatch.run.forecast.forecast.read_earlier", lambda *_: 1 / 0)
    found = make_forecast(prepared, tmp_path / "own")
    assert found.notes() == ["nothing is predicted: ZeroDivisionError: division by zero"]
    assert found.graded({"step_time": 1.0}) == {}


def test_nothing_is_said_where_nothing_is_known(prepared: Any, tmp_path: Path):
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
    assert "memory 476.8 MiB, OUTSIDE" in grade_row(grades)
    one = {"predictions": PREDICTED}
    table = calibration_table(calibration_of([one, one, {}, {"predictions": {"step_time": {"value": "x"}, "mine": 3}}]))
    assert table.rows == [("time of a step", "2", "50.0%", "1.500", "4", "100%", "16% to 100%")]
    assert grades_in({"predictions": {"step_time": PREDICTED["step_time"] | {"low": 3.0}}}) == []


def of_one(key: str, unit: str, value: float, width: float) -> dict[str, Prediction]:
    return {key: Prediction(value, value / width, value * width, unit, "interpolated", "4 earlier runs")}


def test_lines_fit_80_columns_and_leave_out_what_says_nothing():
    told = of_one("step_time", "s", 0.0229, 1.2) | of_one("memory", "bytes", 4.31e8, 1.004)
    told |= of_one("exposed_communication", "s", 0.0207, 3.3) | of_one("final_loss", "", 0.3987, 1.1)
    lines = Forecast(SAME, told).notes()
    assert lines[0] == "predicted: step 22.9 ms (19.1 to 27.5 ms), memory 411 MiB (409.4 to 412.7 MiB)"
    assert max(map(len, lines)) <= 80
    assert "communication" not in "".join(lines), "ends 11 times apart"
    assert "validation loss 0.3987 (0.3625 to 0.4386)" in lines[1]
    vacuous = Forecast(SAME, of_one("exposed_communication", "s", 0.0207, 1e5))
    assert vacuous.notes() == []
    grades = vacuous.graded({"exposed_communication": 0.012})
    assert grade_row(grades) == ""
    assert grades["exposed_communication"]["inside"], "it is recorded and graded all the same"


def test_a_folder_that_was_named_and_predicts_nothing_says_why(prepared: Any, tmp_path: Path):
    def said(name: str) -> list[str]:
        run = prepared.config.run.model_copy(update={"predict_from": str(tmp_path / name)})
        named = but(prepared, config=prepared.config.model_copy(update={"run": run}))
        return make_forecast(named, tmp_path / "own").notes()

    four_runs(tmp_path / "others")
    for number in (1, 2):
        write(tmp_path / f"two/{number}", 8 * number, measured={"step_time": 1.0}, given=conditions(prepared))
    (tmp_path / "empty").mkdir()
    assert "no run to predict from" in said("empty")[0]
    assert "the nearest differs in model, data, loss, optimizer" in said("others")[0]
    assert "too few runs of this kind: 2" in said("two")[0]
    assert make_forecast(prepared, tmp_path / "two/1", is_over=True).found == {}

"""The batch-size explorer: numbers follow from measurements, with their intervals, and say how far off they are."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.records.report.estimates import Estimate, Quantity, between, from_curve, inverse_law, product
from largebatch.records.report.explorer import Explorer, explorers, slider_sizes
from largebatch.records.report.groups import grouped
from largebatch.records.report.layout import page_sections
from largebatch.records.report.quantities import quantities
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.time_quantities import exposed_on
from tests.unit.records.report_folders import write_json, write_run

NOISE = {
    "noise_scale/b_simple": 96.0,
    "noise_scale/ci_low": 64.0,
    "noise_scale/ci_high": 128.0,
    "noise_scale/trace": 8.0,
}


def of(folder: Path) -> dict[str, Quantity]:
    evidence = read_evidence([folder])
    (group,) = grouped(evidence.runs)
    return {one.key: one for one in quantities(group, evidence, is_only=True)}


def test_iterations_per_epoch_are_exact(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    assert of(tmp_path)["iterations"].at(96) == Estimate(1024 / 96, kind="exact")


def test_step_times_are_a_line_whose_interval_is_for_one_more_run(tmp_path: Path):
    sizes, seconds = [16, 32, 64, 128], [0.21, 0.29, 0.54, 0.95]
    for size, step_s in zip(sizes, seconds, strict=True):
        # Micro-batches of 16 as those of the other sizes: their number tells nothing that the samples do not.
        write_run(tmp_path / str(size), size, step_s=step_s)
    best, covariance = curve_fit(lambda x, a, b: np.log(a + b * x), sizes, np.log(seconds), p0=(0.1, 0.01))
    row = np.array([1.0, 256.0])
    value = float(row @ best)
    spread = float(np.sum((np.log(seconds) - np.log(best[0] + best[1] * np.array(sizes))) ** 2)) / 2
    half = 4.302653 * math.sqrt(row @ covariance @ row / value**2 + spread)  # t(2), of the mean and of one run
    found = of(tmp_path)
    assert found["step_time"].at(256).value == pytest.approx(value, rel=1e-4)
    assert found["step_time"].at(256).high == pytest.approx(value * math.exp(half), rel=1e-3)
    assert found["step_time"].at(256).low == pytest.approx(value * math.exp(-half), rel=1e-3)
    assert [found["step_time"].at(size).kind for size in (48, 256)] == ["interpolated", "extrapolated"]
    assert found["epoch_time"].at(256).value == pytest.approx(value * 4, rel=1e-4)
    assert found["step_time"].measured[64].value == 0.54


def test_two_runs_leave_nothing_over_to_tell_the_spread(tmp_path: Path):
    for size, step_s in ((16, 0.1), (32, 0.3)):
        write_run(tmp_path / str(size), size, step_s=step_s)
    step = of(tmp_path)["step_time"]
    assert (step.at(64).low, step.at(64).high) == (None, None)
    assert "Repeat one of them" in step.source


def test_of_one_batch_size_communication_stays_and_the_rest_grows(tmp_path: Path):
    write_run(tmp_path / "a", 32, step_s=0.5, extra={"time/communication_s": 0.1})
    step = of(tmp_path)["step_time"]
    assert step.at(32) == Estimate(0.5, None, None, "measured")
    assert step.at(64) == Estimate(pytest.approx(0.9), kind="extrapolated")
    assert "is assumed" in step.source


def test_noise_over_signal_is_the_noise_scale_over_the_batch_and_steps_follow(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE)
    found = of(tmp_path)
    assert found["relative_noise"].at(32) == Estimate(3.0, 2.0, 4.0, "interpolated")  # micro-batches of 16, batch 64
    assert found["relative_noise"].at(64) == Estimate(1.5, 1.0, 2.0, "measured")
    assert found["relative_noise"].at(128).kind == "extrapolated"
    assert found["steps"].at(32) == Estimate(4.0, 3.0, 5.0, "interpolated")
    assert found["variance"].at(32).value == 0.25


def test_noise_scales_of_several_runs_are_their_envelope(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE)
    write_run(tmp_path / "b", 64, seed=1, extra=NOISE | {"noise_scale/b_simple": 160.0, "noise_scale/ci_high": 256.0})
    assert of(tmp_path)["relative_noise"].at(64) == Estimate(2.0, 1.0, 4.0, "measured")


def test_the_measured_variance_and_its_interval_come_before_those_of_runs(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE)
    points = [{"batch_size": size, "variance": 10 / size, "interval": [9 / size, 11 / size]} for size in (4, 16)]
    moments = {"trace": 10.0, "trace_interval": [9.0, 12.0], "noise_scale": None, "interval": None}
    record = {"noise": {}, "moments": moments, "with_replacement": {"points": points}}
    write_json(tmp_path / "measured" / "variance.json", record)
    variance = of(tmp_path)["variance"]
    assert variance.at(4) == Estimate(2.5, 2.25, 3.0, "measured")
    assert variance.at(20) == Estimate(0.5, 0.45, 0.6, "extrapolated")
    assert variance.measured[16] == Interval(10 / 16, 9 / 16, 11 / 16)


def test_what_was_not_measured_is_no_evidence_and_says_why(tmp_path: Path):
    write_run(tmp_path / "a", 64)
    found = of(tmp_path)
    for key in ("relative_noise", "variance", "steps", "memory"):
        assert found[key].at(64) == Estimate(None, kind="no evidence")
    assert found["memory"].source.startswith("not measured")


def test_memory_follows_the_micro_batch_and_not_the_batch(tmp_path: Path):
    for size, gib in ((8, 1.0), (16, 2.0), (64, 2.0)):
        write_run(tmp_path / str(size), size, extra={"memory/peak_bytes": gib * 2**30})
    memory = of(tmp_path)["memory"]
    assert [memory.at(size).value for size in (8, 16, 64, 512)] == pytest.approx([1.0, 2.0, 2.0, 2.0])
    assert [memory.at(size).kind for size in (8, 32, 512)] == ["measured", "interpolated", "extrapolated"]
    assert memory.at(4) == Estimate(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5), "extrapolated")


def test_memory_of_other_micro_batches_than_the_only_known_one_is_no_evidence(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra={"memory/peak_bytes": 2**30})
    assert [of(tmp_path)["memory"].at(size).value for size in (8, 64, 128)] == [None, 1.0, 1.0]


def test_price_and_energy_are_the_time_of_an_epoch_with_its_interval(tmp_path: Path):
    for seed, step_s in enumerate((0.5, 0.6)):
        write_run(tmp_path / str(seed), 32, seed=seed, step_s=step_s)
    found = of(tmp_path)
    for key, remedy in (("price", "cost.device_hour"), ("energy", "cost.device_watts"), ("time_to_target", "study")):
        assert found[key].at(32).value is None
        assert remedy in found[key].source
    evidence = read_evidence([tmp_path])
    cost = CostConfig(device_hour=3.6, currency="EUR", device_watts=250.0)
    (group,) = grouped(evidence.runs)
    paid = {one.key: one for one in quantities(group, evidence, is_only=True, cost=cost)}
    epoch = paid["epoch_time"].at(32)
    assert (epoch.value, epoch.kind) == (pytest.approx(32 * math.sqrt(0.3)), "measured")
    for part in ("value", "low", "high"):
        assert getattr(paid["price"].at(32), part) == pytest.approx(getattr(epoch, part) * 1e-3)  # 3.6 / 3600
        assert getattr(paid["energy"].at(32), part) == pytest.approx(getattr(epoch, part) * 250 / 3.6e6)
    assert paid["price"].unit == "EUR"


def test_half_widths_of_independent_factors_add_up_as_squares_on_the_logarithm():
    both = product(
        lambda size: Estimate(2.0, 2.0 / math.e**3, 2.0 * math.e**3), lambda size: Estimate(1.0, math.e**-4, math.e**4)
    )
    assert both(8).high == pytest.approx(2 * math.exp(5.0))  # 3, 4, 5
    assert product(both, lambda size: Estimate(1.0))(8) == Estimate(2.0, None, None)
    assert product(both, lambda size: Estimate(None, kind="no evidence"))(8).value is None


def test_communication_on_more_ranks_comes_from_latency_and_bandwidth():
    fit = {"latency_s": 2.0, "s_per_byte": 1.0, "latency_interval": [1.0, 3.0], "s_per_byte_interval": [0.5, 1.5],
           "bandwidth_bytes_per_s": 1.0}  # fmt: skip
    numbers = {"ranks": 2, "fit": fit, "steps": {"num_bytes": [4], "lead_s": [0.0]},
               "medians": {"step_without": {"value": 20.0}}}  # fmt: skip
    assert exposed_on(numbers, 4) == Estimate(12.0, 6.0, 18.0, "extrapolated")  # a ring: 6 messages and 6/4 of 4 bytes
    assert exposed_on({"fit": {}}, 4) is None


def test_gap_and_accuracy_are_interpolated_between_runs_and_unknown_outside(tmp_path: Path):
    write_run(tmp_path / "a", 16, accuracy=0.9)
    write_run(tmp_path / "b", 64, accuracy=0.8)
    accuracy = of(tmp_path)["eval_val_accuracy"]
    half = 1.959964 * 0.01
    assert accuracy.at(32) == Estimate(
        pytest.approx(0.85), pytest.approx(0.85 - half), pytest.approx(0.85 + half), "interpolated"
    )
    assert accuracy.at(128) == Estimate(None, kind="no evidence")


def test_steps_to_the_target_come_from_the_study_where_there_is_one(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE)
    curve = {"batch_size": [16, 64], "steps": [400.0, 100.0], "low": [200.0, 50.0], "high": None}
    fit = {"optimizer": "lars", "s_min": {"value": 50.0}, "b_crit": {"value": 64.0}, "curve": curve, "supported": True}
    write_json(tmp_path / "study.json", {"points": [{"runs": ["a"]}], "fits": [fit]})
    steps = of(tmp_path)["steps"]
    assert steps.at(32) == Estimate(pytest.approx(200.0), pytest.approx(100.0), None, "interpolated")
    assert steps.at(128) == Estimate(75.0, kind="extrapolated")


def test_a_study_without_a_fit_beyond_its_curve_says_nothing_there():
    at = from_curve({"batch_size": [16, 64], "steps": [400.0, 100.0]}, s_min=None, b_crit=None)
    assert at(16).value == pytest.approx(400.0)
    assert at(128).value is None


def test_ends_that_nobody_knows_stay_unknown():
    one = Interval(1.0, math.nan, math.nan)
    assert between({8: one, 32: one})(16) == Estimate(1.0, None, None, "interpolated")
    assert inverse_law(one, [8])(8) == Estimate(0.125, None, None, "measured")


def test_the_slider_has_every_measured_batch_size_and_stays_within_the_training_set():
    sizes = slider_sizes([10, 700], most=1024)
    assert {10, 700} <= set(sizes)
    assert (sizes[0], sizes[-1]) == (2, 1024)
    assert slider_sizes([64], most=64)[-1] == 64
    assert slider_sizes([1], most=1) == [1]


@pytest.fixture
def explored(tmp_path: Path) -> Explorer:
    write_run(tmp_path / "a", 16, extra=NOISE)
    write_run(tmp_path / "b", 64, extra=NOISE)
    evidence = read_evidence([tmp_path])
    (found,) = explorers(grouped(evidence.runs), evidence)
    return found


def test_the_page_shows_each_number_with_unit_interval_and_kind(explored: Explorer):
    record: dict[str, Any] = json.loads(json.dumps(explored.record(), allow_nan=False))
    at = record["sizes"].index(32)
    rows = {one.key: row for one, row in zip(explored.quantities, record["rows"], strict=True)}
    shown = {key: tuple(row[part][at] for part in ("value", "interval", "kind")) for key, row in rows.items()}
    assert shown["iterations"] == ("32 steps", "exact", "exact")
    assert shown["step_time"] == ("500 ms", "unknown", "interpolated")
    assert shown["relative_noise"] == ("3", "2 to 4", "interpolated")
    assert shown["memory"] == ("no evidence", "", "no evidence")


def test_figures_are_solid_where_supported_and_dashed_beyond(explored: Explorer):
    figures = {figure.name: figure for figure in explored.figures}
    assert "explorer_memory" not in figures
    solid, dashed, points = figures["explorer_step_time"].lines  # type: ignore[union-attr]
    known = [size for size, value in zip(solid.x, solid.y, strict=True) if value is not None]
    assert (known[0], known[-1]) == (16, 64)
    beyond = [size for size, value in zip(dashed.x, dashed.y, strict=True) if value is not None]
    assert (beyond[0], beyond[-1]) == (explored.sizes[0], explored.sizes[-1])
    assert {16, 64} <= set(beyond)  # where both meet
    assert (dashed.style, points.style, list(points.x)) == ("dashed", "points", [16, 64])
    assert all(re.match("From: ", shown.caption) for shown in explored.figures)


def test_the_page_says_how_the_predictions_of_runs_did(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    predicted = {"step_time": {"value": 1.0, "low": 0.9, "high": 1.1, "measured": 1.2}}
    write_json(tmp_path / "a" / "summary.json", {"status": "finished", "predictions": predicted})
    sections, _ = page_sections(read_evidence([tmp_path]), [], tmp_path / "report.html")
    (shown,) = [one.before for one in sections if one.key == "predictions"]
    assert "<td>time of a step</td><td>1</td><td>20.0%</td>" in shown

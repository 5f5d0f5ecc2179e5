"""Costs to a target on planted laws: intervals hold them, and the best trades are the true ones."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from largebatch.__main__ import main
from largebatch.diagnostics.critical_batch.pareto import DOMINATED, FRONT, geometric_mean, pareto_places, ratio_of_means
from largebatch.experiments.batch_costs import batch_costs, cost_figures, cost_sentences, cost_table
from largebatch.experiments.large_batch_gap import compare_runs
from largebatch.experiments.target_costs import parse_target, with_costs
from largebatch.records.report.target_runs import TargetRun, run_to_target, runs_of_study
from tests.unit.records.report_folders import write_run

SIZES = (16, 32, 64, 128, 256, 512, 1024)
S_MIN, B_CRIT, FIXED, PER_SAMPLE = 100.0, 128.0, 4e-3, 32e-6


def steps_of(size: int) -> float:
    return S_MIN * (1 + B_CRIT / size)


def step_s_of(size: int) -> float:
    return FIXED + PER_SAMPLE * size


def runs(*, noise: float, seeds: int = 5, seed: int = 0) -> list[TargetRun]:
    generator = np.random.default_rng(seed)

    def noisy(value: float) -> float:
        return value * math.exp(noise * generator.standard_normal())

    return [
        TargetRun(
            "SGD", size, number, noisy(steps_of(size)), noisy(step_s_of(size)), ranks=2, device_hour=3.0, watts=500
        )
        for size in SIZES
        for number in range(seeds)
    ]


def test_the_front_is_that_of_the_planted_laws():
    """S (f + p B) has its least at sqrt(B_crit f / p): smaller batches trade time for samples, larger have neither."""
    assert math.isclose(math.sqrt(B_CRIT * FIXED / PER_SAMPLE), 126.5, abs_tol=0.1)
    found = batch_costs(runs(noise=0.002))
    assert [one.place.status for one in found if one.place] == [FRONT] * 4 + [DOMINATED] * 3
    # Of the batch sizes that dominate, the one with the least time x samples.
    assert [one.place.by for one in found if one.place] == [None] * 4 + [64] * 3
    for one in found:
        steps, seconds = steps_of(one.batch_size), steps_of(one.batch_size) * step_s_of(one.batch_size)
        truth = {"steps": steps, "samples": steps * one.batch_size, "seconds": seconds,
                 "price": seconds * 2 * 3.0 / 3600, "energy": seconds * 2 * 500 / 3.6e6}  # fmt: skip
        assert {key: one.costs[key].value for key in truth} == pytest.approx(truth, rel=0.01)
    assert cost_sentences(found)[1] == (
        "SGD: in time and samples, batches 16, 32, 64, 128 are on the front; batches "
        "256 (by 64), 512 (by 64), 1,024 (by 64) are dominated."
    )


def test_with_noise_intervals_hold_the_truth_and_no_verdict_is_wrong_too_often():
    inside, verdicts, wrong = [], 0, 0
    for seed in range(100):
        for one in batch_costs(runs(noise=0.1, seeds=3, seed=seed)):
            seconds = one.costs["seconds"]
            inside.append(seconds.low <= steps_of(one.batch_size) * step_s_of(one.batch_size) <= seconds.high)
            assert one.place is not None
            is_first = one.batch_size <= 128
            verdicts += one.place.status in (FRONT, DOMINATED)
            wrong += one.place.status == (DOMINATED if is_first else FRONT)
    room = 4 * math.sqrt(0.95 * 0.05 / len(inside))
    assert abs(np.mean(inside) - 0.95) < room
    assert verdicts > 150
    assert wrong / verdicts < 0.05


def test_equal_readings_are_as_uncertain_as_the_grid_that_they_were_read_on():
    assert math.isnan(geometric_mean([7.0] * 3).low)
    found = geometric_mean([7.0] * 3, resolution=0.05)
    half = 4.302652729749464 * math.log(1.05) / 6  # Student's t of 2 degrees; sqrt(12 * 3) = 6
    assert (found.low, found.high) == pytest.approx((7 * math.exp(-half), 7 * math.exp(half)))
    coarse = ratio_of_means([7.0] * 3, [8.0] * 3, resolution=math.inf)
    assert math.isnan(coarse.low)
    assert coarse.value == pytest.approx(8 / 7)


def test_without_intervals_nothing_is_decided_and_the_means_are_told_apart():
    places = pareto_places({8: [[1.0], [1.0]], 16: [[2.0], [2.0]]}, resolutions=(0.05, 0.05))
    assert [(one.status, one.is_first) for one in places.values()] == [("undecided", True), ("undecided", False)]


def test_what_is_not_known_is_said_and_a_seed_counts_once():
    plain = [replace(run, step_s=None) for run in runs(noise=0.1)]
    found = batch_costs([*plain, plain[0]])
    assert {key for one in found for key in one.costs} == {"steps", "samples"}
    assert found[0].num_seeds == 5
    assert cost_sentences(found) == ["SGD: no run has times, so that steps and samples alone are known."]
    assert cost_figures(found) == []
    lost = [replace(run, steps=None) if (run.batch_size, run.seed) == (16, 1) else run for run in runs(noise=0.1)]
    missed = batch_costs(lost)
    assert [one.place is None for one in missed] == [True] + [False] * 6
    assert cost_table(missed).rows[0][2:5] == ("1 of 5 missed it",) * 3
    free = batch_costs([replace(run, device_hour=None, watts=None) for run in runs(noise=0.1)])
    assert "set cost.device_hour" in cost_sentences(free)[-1]


def test_compare_tells_what_a_target_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Validation losses fall linearly from 2 to 1.1 over 8 evaluations of 1,024 samples each: 1.5 after the fifth."""
    folders = [
        str(write_run(tmp_path / f"{batch}-{seed}", batch, seed=seed, step_s=batch / 1000))
        for batch in (16, 64)
        for seed in range(3)
    ]
    out = tmp_path / "out"
    assert main(["compare", *folders, "--target", "eval/val_loss=1.5", "--out", str(out)]) == 0
    costs = json.loads((out / "large_batch_gap.json").read_text())["numbers"]["costs"]
    for one in costs:
        values = {key: ends["value"] for key, ends in one["costs"].items()}
        steps = 5 * 1024 / one["batch_size"]
        assert values == pytest.approx({"steps": steps, "samples": 5120, "seconds": 5.12})
        assert one["at_target"]["val_loss"]["value"] == pytest.approx(2 - 0.9 * 5 / 8)
        # The fourth evaluation is a quarter before.
        half = 4.302652729749464 * math.log(1.25) / 6
        assert one["costs"]["steps"]["high"] == pytest.approx(steps * math.exp(half))
    assert "set cost.device_hour" in capsys.readouterr().out


def test_who_missed_the_target_and_who_passed_it_unseen_is_said(tmp_path: Path):
    """Losses end near 1.1; one seed of batch 64 was broken off before, and made again."""
    folders = [
        str(write_run(tmp_path / f"{batch}-{seed}", batch, seed=seed, step_s=batch / 1000))
        for batch in (16, 64)
        for seed in range(3)
    ]

    def told(target: str, *more: str) -> tuple[str, list[tuple[str, ...]]]:
        compared, _ = compare_runs([*folders, *more], on_left_out=print)
        found = with_costs(compared, parse_target(target))
        return " ".join(found.sentences), list(found.tables[-1].rows)

    said, rows = told("eval/val_loss=0.5")
    assert "missed by batch 16 (3 of 3 seeds, at best 1.1" in said
    assert "; batch 64 (3 of 3 seeds, at best 1.1" in said
    assert [row[2] for row in rows] == ["3 of 3 missed it"] * 2
    assert "no run has times" not in said
    said, _ = told("eval/val_loss=1.95")
    assert "a first evaluation had passed it already for batch 16, 64" in said
    # Of a seed with two runs the one that went on longer counts, whichever is named last.
    again = shutil.copytree(folders[-1], tmp_path / "again")
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert "missed by" not in told("eval/val_loss=1.3", str(again))[0]


def test_a_target_that_no_run_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(write_run(tmp_path / f"{batch}", batch)) for batch in (16, 64)]
    for folder in folders:
        file = Path(folder) / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if "accuracy" not in key} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert main(["compare", *folders, "--target", "eval/val_accuracy=0.9", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "no run has a value of eval/val_accuracy. Choose among eval/val_loss, eval/train_loss" in said
    assert not (tmp_path / "out").exists()


def test_an_accuracy_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"is a share, and 90 is not from 0 to 1. Give one, such as 0\.9 for 90 %"):
        parse_target("eval/val_accuracy=90")


@pytest.mark.parametrize("text", ["0.2", "eval/val_loss", "eval/val_loss=low", "eval/loss=0.2", "eval/val_loss=nan"])
def test_a_wrong_target_is_refused(text: str):
    with pytest.raises(ValueError, match="is no METRIC=VALUE with a metric among eval/val_loss"):
        parse_target(text)


def test_a_run_that_misses_the_target_has_no_costs_and_a_lost_one_of_a_study_keeps_its_steps(tmp_path: Path):
    from largebatch.records.report.run_files import read_run

    record = read_run(write_run(tmp_path / "run", 32, seed=4))
    missed = run_to_target(record, "eval/val_accuracy", 0.95)
    assert (missed.steps, missed.seconds, missed.seed) == (None, None, "4")
    point = {"optimizer": "sgd", "batch_size": 32, "steps": [40.0, None], "runs": ["run", "lost"]}
    first, lost = runs_of_study([point], tmp_path, resolution=0.05)
    assert (first.optimizer, first.steps, first.step_s, first.val_loss) == ("SGD", 40.0, 0.5, pytest.approx(1.1))
    assert (lost.steps, lost.step_s) == (None, None)

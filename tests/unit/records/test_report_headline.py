"""The three numbers of the first screen: each follows from the evidence, or says what to run for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from largebatch.records.report.batches import batch_figures
from largebatch.records.report.groups import grouped
from largebatch.records.report.headline import Headline, headlines
from largebatch.records.report.overview import overview
from largebatch.records.report.quantities import quantities
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.studies import picture, studies
from tests.unit.records.report_folders import write_json, write_run


def point(optimizer: str, size: int, steps: list[float], censored: list[float] | None = None) -> dict[str, Any]:
    return {"optimizer": optimizer, "batch_size": size, "steps": steps, "censored_at": censored or [],
            "num_runs": len(steps) + len(censored or [])}  # fmt: skip


def fit(optimizer: str, value: float, low: float | None, high: float | None, *, supported: bool) -> dict[str, Any]:
    verdict = "supported: predicts well" if supported else "not supported: it does not"
    return {"optimizer": optimizer, "b_crit": {"value": value, "low": low, "high": high}, "supported": supported,
            "verdict": verdict}  # fmt: skip


def write_study(
    folder: Path, points: list[dict[str, Any]], fits: list[dict[str, Any]], runs: Sequence[str] = ()
) -> None:
    numbers = {"points": points, "fits": fits}
    record = {"kind": "study", "title": "Steps to a target", "question": "", "sentences": ["So."], "tables": [],
              "figures": [], "runs": list(runs), "numbers": numbers}  # fmt: skip
    write_json(folder / "study.json", record)


def shown(folder: Path) -> list[Headline]:
    evidence = read_evidence([folder])
    return headlines(studies(evidence), grouped(evidence.compared), evidence)


def test_without_evidence_each_number_says_what_to_run(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    best, cost, b_crit = shown(tmp_path)
    assert {one.value for one in (best, cost, b_crit)} == {""}
    assert "Run `largebatch study study.target.value=VALUE run.dir=runs/study`" in best.about
    assert "Run `largebatch train --multirun batch.total=SMALL,LARGE seed=0,1,2`" in cost.about
    assert "Run `largebatch study" in b_crit.about
    evidence = read_evidence([tmp_path])
    (option,) = overview(evidence, grouped(evidence.runs), []).options
    assert "No picture yet" in option.before
    assert not option.figures


def test_the_best_batch_has_the_fewest_samples_and_names_those_that_the_seeds_do_not_tell_from_it(tmp_path: Path):
    # Samples: 16 x 50 = 800 (range 720 to 880), 32 x 26 = 832 (800 to 864), 64 x 25 = 1,600.
    points = [point("sgd", 16, [45, 50, 55]), point("sgd", 32, [25, 26, 27]), point("sgd", 64, [24, 25, 26]),
              point("lars", 16, [], [40, 40, 40])]  # fmt: skip
    write_study(tmp_path, points, [])
    best, _, b_crit = shown(tmp_path)
    assert (best.value, best.interval) == ("batch 16", "16 to 32 cannot be told apart")
    assert best.about == "SGD: 800 samples to the target (range of seeds 720 to 880)"
    assert b_crit.value == ""


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_there_is_no_interval(seeds: int, tmp_path: Path):
    write_study(tmp_path / "study", [point("sgd", 16, [50.0, 60.0][:seeds]), point("sgd", 32, [40.0] * seeds)], [])
    assert shown(tmp_path)[0].interval == f"{seeds} seed{'s' * (seeds > 1)}: no interval"
    for seed in range(seeds):
        write_run(tmp_path / f"small{seed}", 32, accuracy=0.9 + 0.01 * seed, seed=seed)
        write_run(tmp_path / f"large{seed}", 512, accuracy=0.8 + 0.01 * seed, seed=seed)
    cost = shown(tmp_path)[1]
    assert cost.value == "10 points"
    assert ("no interval" in cost.interval, "one seed" in cost.interval) == (seeds == 2, seeds == 1)


def test_the_cost_is_of_the_optimizer_that_ends_best_at_the_largest_batch(tmp_path: Path):
    for seed in range(3):
        for name, end in (("SGD", 0.7), ("LAMB", 0.85)):
            write_run(tmp_path / f"{name}32{seed}", 32, accuracy=0.9 + 0.001 * seed, seed=seed, optimizer=name)
            write_run(tmp_path / f"{name}512{seed}", 512, accuracy=end + 0.001 * seed, seed=seed, optimizer=name)
    cost = shown(tmp_path)[1]
    # Welch: standard error 0.001 sqrt(2/3), t(4) = 2.776445, half width 0.2267 points
    assert (cost.value, cost.interval) == ("5 points", "95 %: 4.8 to 5.2")
    assert cost.about == "LAMB: validation accuracy at batch 512 against 32, at equal samples"


def test_without_such_runs_the_cost_comes_from_compare(tmp_path: Path):
    gaps = [
        {
            "global_batch_size": size,
            "match": "samples",
            "loss": {"value": 1.0, "low": 0.5, "high": 1.5},
            "accuracy": {"value": cost, "low": None, "high": None},
        }
        for size, cost in ((256, 0.01), (512, 0.02))
    ]
    record = {"kind": "comparison", "title": "Large-batch gap", "question": "", "sentences": [], "tables": [],
              "figures": [], "runs": [], "numbers": {"base_batch_size": 32, "large_batch_gap": gaps}}  # fmt: skip
    write_json(tmp_path / "large_batch_gap.json", record)
    cost = shown(tmp_path)[1]
    assert (cost.value, cost.interval) == ("2 points", "no interval")
    assert cost.about == "validation accuracy of batch 512 against 32 at equal samples, by largebatch compare"


def test_only_a_supported_fit_gives_b_crit_and_the_others_are_named(tmp_path: Path):
    points = [point(name, size, [9.0, 10.0, 11.0]) for name in ("sgd", "lars", "lamb") for size in (16, 64)]
    fits = [fit("sgd", 147, None, None, supported=False), fit("lars", 31.2, 24.1, 39.8, supported=True)]
    write_study(tmp_path / "one", points, fits)
    b_crit = shown(tmp_path)[2]
    assert (b_crit.value, b_crit.interval) == ("31.2 samples", "95 %: 24.1 to 39.8")
    assert b_crit.about == "LARS: supported: predicts well. Also SGD not supported"
    write_study(tmp_path / "one", points, fits[:1])
    b_crit = shown(tmp_path)[2]
    assert b_crit.value == ""
    assert "Fits without support: SGD 147 (0 to unbounded)" in b_crit.about


def test_the_picture_marks_the_fewest_and_shows_a_bound_as_a_bound(tmp_path: Path):
    write_study(tmp_path, [point("sgd", 16, [20.0] * 3), point("lars", 16, [30.0] * 3), point("sgd", 64, [8.0] * 3),
                           point("lars", 64, [], [7.0] * 3)], [])  # fmt: skip
    (study,) = studies(read_evidence([tmp_path]))
    found = {(line.label, line.style): (list(line.x), list(line.y)) for line in picture(study).lines}
    assert found["fewest steps", "rings"] == ([16, 64], [20.0, 8.0])  # the bound 7 is none
    assert found["not reached: at least", "bounds"] == ([64], [7.0])
    assert found["SGD", "line"] == ([16, 64], [20.0, 8.0])


def test_runs_that_end_at_the_target_of_a_study_have_no_values_at_the_end(tmp_path: Path):
    runs = []
    for size in (32, 64):
        for seed in range(3):
            write_run(tmp_path / "study" / "runs" / f"b{size}s{seed}", size, seed=seed)
            runs.append(f"runs/b{size}s{seed}")
    write_study(tmp_path / "study", [point("lars", 32, [9.0] * 3)], [], runs)
    write_run(tmp_path / "other", 32)
    evidence = read_evidence([tmp_path])
    free, of_study = grouped(evidence.compared)
    assert (free.experiment, of_study.experiment) == ("digits, ConvNet", "digits, ConvNet, to the target of study")
    assert batch_figures([of_study]) == []
    assert [len(one.lines) for one in batch_figures([free, of_study])] == [1] * 4
    names = {one.key for one in quantities(of_study, evidence, is_only=False)}
    assert not names & {"eval_val_accuracy", "eval_val_loss", "gap_loss", "gap_accuracy"}
    assert json.loads((tmp_path / "study" / "study.json").read_text())["runs"] == runs

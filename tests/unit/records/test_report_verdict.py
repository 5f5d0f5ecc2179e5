"""The sentences of a report say what its runs support, with the interval, and no more."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from largebatch.records.report.batches import ACCURACY, LOSS, outcome, quality_of, worse_than_smallest
from largebatch.records.report.caveats import caveats
from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.groups import grouped
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.seeds import by_seed
from largebatch.records.report.studies import studies
from largebatch.records.report.verdict import of_batches, others, verdict
from tests.unit.records.report_folders import write_json, write_run


def said(evidence: Evidence) -> tuple[str, str]:
    groups, found = grouped(evidence.runs), studies(evidence)
    told = [*verdict(evidence, groups, found), *(line for group in groups for line in of_batches(group))]
    return " ".join([*told, *others(evidence, found)]), " ".join(caveats(evidence, groups))


def test_a_large_batch_that_ends_worse_by_more_than_noise_is_told_from_one_that_does_not(tmp_path: Path):
    for seed, wobble in enumerate((-0.002, 0.0, 0.002)):
        write_run(tmp_path / f"small{seed}", 32, accuracy=0.9 + wobble, seed=seed)
        write_run(tmp_path / f"middle{seed}", 64, accuracy=0.899 + wobble, seed=seed)
        write_run(tmp_path / f"large{seed}", 512, accuracy=0.85 + wobble, seed=seed)
    words, doubts = said(read_evidence([tmp_path]))
    assert "validation accuracy at batch 32 is 0.9 (95 %: 0.895 to 0.905)" in words
    # Welch: standard error 0.002 sqrt(2/3) = 0.001633, t(4) = 2.7764, half width 0.4534 points
    assert (
        "batch 64 ends 0.1 points worse than the smallest (95 %: -0.353 to +0.553, positive is worse): within the noise"
        in words
    )
    assert (
        "batch 512 ends 5 points worse than the smallest (95 %: +4.55 to +5.45, positive is worse): more than noise"
        in words
    )
    assert "one run" not in doubts


def test_one_run_each_is_compared_by_the_errors_over_validation_samples(tmp_path: Path):
    write_run(tmp_path / "a", 32, accuracy=0.9)
    write_run(tmp_path / "b", 64, accuracy=0.92)
    evidence = read_evidence([tmp_path])
    (group,) = grouped(evidence.runs)
    found = worse_than_smallest(group, ACCURACY)[64]
    assert (found.over, found.seeds) == ("validation samples", 1)
    assert found.change.value == pytest.approx(-0.02)
    assert found.change.high - found.change.value == pytest.approx(1.959964 * 0.01 * math.sqrt(2))
    words, doubts = said(evidence)
    assert "(95 % over validation samples: 0.8804 to 0.9196)" in words
    assert "positive is worse): within their noise. One seed says nothing about the noise of seeds" in words
    assert (
        "One seed (1): digits, ConvNet, LARS at batch 32, 64. Such an interval covers the validation samples" in doubts
    )


def test_two_optimizers_in_one_sentence_say_once_which_sign_is_worse(tmp_path: Path):
    for optimizer, large in (("SGD", 0.8), ("LARS", 0.95)):
        write_run(tmp_path / f"{optimizer}32", 32, accuracy=0.9, optimizer=optimizer)
        write_run(tmp_path / f"{optimizer}512", 512, accuracy=large, optimizer=optimizer)
    words, _ = said(read_evidence([tmp_path]))
    assert "at equal samples (of intervals, positive is worse): LARS 5 points better (95 %" in words
    assert "; SGD 10 points worse (95 %" in words


def test_three_runs_of_one_seed_are_one_value_that_is_told(tmp_path: Path):
    for number in range(3):
        write_run(tmp_path / f"small{number}", 32, accuracy=0.9)
        write_run(tmp_path / f"large{number}", 512, accuracy=0.8)
    words, doubts = said(read_evidence([tmp_path]))
    assert "than noise" not in words
    assert "more than their noise. One seed says nothing about the noise of seeds" in words
    assert "Seeds that were run again (2): digits, ConvNet, LARS, batch 32: 3 runs of seed 0 merged; " in doubts
    assert "One seed (1): digits, ConvNet, LARS at batch 32, 512." in doubts


def test_a_seed_that_was_run_often_counts_once_beside_the_others(tmp_path: Path):
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        write_run(tmp_path / f"a{seed}", 32, accuracy=accuracy, seed=seed)
    write_run(tmp_path / "again", 32, accuracy=0.96, seed=2)
    (group,) = grouped(read_evidence([tmp_path]).runs)
    found = outcome(group.by_batch[32], ACCURACY)
    # Seeds 0.90, 0.92 and the mean 0.95 of both runs of the third: Student's t(2) = 4.302653.
    values = np.array([0.90, 0.92, 0.95])
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(4.302653 * values.std(ddof=1) / math.sqrt(3), rel=1e-6)
    _, doubts = said(read_evidence([tmp_path]))
    assert "2 runs of seed 2 merged, which ended from 0.94 to 0.96: their mean counts." in doubts


def test_a_run_that_was_broken_off_gives_way_to_its_repetition(tmp_path: Path):
    for seed in range(3):
        for batch in (32, 64):
            write_run(tmp_path / f"b{batch}s{seed}", batch, accuracy=0.9 + 0.002 * seed, seed=seed)
    write_run(tmp_path / "killed", 32, accuracy=0.9, seed=0, status=None)
    path = tmp_path / "killed" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    words, doubts = said(read_evidence([tmp_path]))
    assert "batch 64 ends 0 points better than the smallest" in words
    assert "2 runs of seed 0 merged (1 of them saw fewer samples and are left out)." in doubts


@pytest.mark.parametrize("key", ["model.width", "data.num_workers"])
def test_one_seed_with_several_settings_is_one_replicate(key: str):
    def made(seed: str, value: str) -> RunRecord:
        return RunRecord(Path("a"), "a", {}, {"seed": seed, key: value}, {}, [])

    assert [len(one) for one in by_seed([made("0", "8"), made("0", "16"), made("1", "8")])] == [2, 1]
    unnamed = [RunRecord(Path("a"), "a", {}, {key: "8"}, {}, []) for _ in range(2)]
    assert len(by_seed(unnamed)) == 2


def test_two_seeds_have_no_interval_and_no_verdict(tmp_path: Path):
    for seed in range(2):
        write_run(tmp_path / f"small{seed}", 32, accuracy=0.9 + 0.001 * seed, seed=seed)
        write_run(tmp_path / f"large{seed}", 512, accuracy=0.5 + 0.001 * seed, seed=seed)
    words, _ = said(read_evidence([tmp_path]))
    assert "validation accuracy at batch 32 is 0.9005 (2 seeds: no interval)" in words
    assert (
        "batch 512 ends 40 points worse than the smallest (2 seeds: no interval): that cannot be told from noise"
        in words
    )


def test_seeds_that_end_alike_by_chance_are_no_certainty(tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path / f"small{seed}", 32, accuracy=0.9, seed=seed)
        write_run(tmp_path / f"large{seed}", 512, accuracy=0.89, seed=seed)
    words, _ = said(read_evidence([tmp_path]))
    assert "all seeds ended alike: no interval" in words
    assert "more than noise" not in words


def test_shares_stay_between_0_and_1_and_their_differences_between_minus_1_and_1(tmp_path: Path):
    for seed, accuracy in enumerate((0.5, 0.9, 1.0)):
        write_run(tmp_path / f"small{seed}", 32, accuracy=accuracy, seed=seed)
        write_run(tmp_path / f"large{seed}", 512, accuracy=1 - accuracy, seed=seed)
    (group,) = grouped(read_evidence([tmp_path]).runs)
    assert outcome(group.by_batch[32], ACCURACY).high == 1
    assert outcome(group.by_batch[512], ACCURACY).low == 0
    assert worse_than_smallest(group, ACCURACY)[512].change.high == 1
    assert outcome(group.by_batch[32], LOSS).high > 1.5, "a loss is no share"


def test_a_loss_of_one_run_each_cannot_be_told_from_noise(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "b", 64)
    (group,) = grouped(read_evidence([tmp_path]).runs)
    assert worse_than_smallest(group, LOSS)[64].over == ""


def test_runs_that_diverged_have_no_outcome_and_are_named(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "lost", 64, status="diverged")
    evidence = read_evidence([tmp_path])
    (group,) = grouped(evidence.runs)
    assert outcome(group.by_batch[64], ACCURACY) is None
    assert quality_of(group) == ACCURACY
    words, doubts = said(evidence)
    assert "no other batch size with an evaluation to compare with" in words
    assert "Runs that are diverged (1): lost." in doubts


def test_unequal_budgets_and_settings_are_named(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "b", 64, width=32)
    path = tmp_path / "b" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))
    words, doubts = said(read_evidence([tmp_path]))
    assert "Settings that differ besides the batch (1): digits, ConvNet, LARS: model.width." in doubts
    assert "because the runs saw 4,096 to 8,192 samples." in words
    assert "noise" not in words


def test_optimizers_are_not_mixed(tmp_path: Path):
    write_run(tmp_path / "a", 32, optimizer="LARS")
    write_run(tmp_path / "b", 64, optimizer="LAMB")
    assert {group.name for group in grouped(read_evidence([tmp_path]).runs)} == {
        "digits, ConvNet, LARS", "digits, ConvNet, LAMB",
    }  # fmt: skip


def test_the_noise_scale_comes_with_its_interval_and_a_study_with_its_claim(tmp_path: Path):
    write_run(
        tmp_path / "a",
        32,
        extra={"noise_scale/b_simple": 96.0, "noise_scale/ci_low": 80.0, "noise_scale/ci_high": 120.0},
    )
    write_json(tmp_path / "study" / "study.json", {"points": [], "conclusions": ["LARS wins.", "By much."]})
    words, doubts = said(read_evidence([tmp_path]))
    assert "Gradient noise scale at the end of training, in samples: LARS 96 (95 %: 80 to 120; batch 32)." in words
    assert "Study: LARS wins." in words
    assert "No study" not in doubts


def test_without_any_evaluation_nothing_is_claimed():
    words, doubts = said(Evidence([]))
    assert words == "There is no run with an evaluation, and no study: nothing can be said about batch sizes."
    assert "No study is among the folders" in doubts

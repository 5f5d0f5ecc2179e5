"""What the page compares two runs by is what the runs have logged."""

from __future__ import annotations

from pathlib import Path

from largebatch.records.report.reading import read_evidence
from largebatch.records.report.two_runs import comparison
from tests.unit.records.report_folders import write_run


def test_series_keep_their_steps_samples_and_values(tmp_path: Path):
    write_run(tmp_path / "a", 64, num_rows=4, accuracy=0.8)
    found = comparison(read_evidence([tmp_path]).runs)
    assert found["series"][0]["eval/val_accuracy"] == [
        [32, 64, 96, 128],
        [2048, 4096, 6144, 8192],
        [0.2, 0.4, 0.6, 0.8],
    ]
    assert "noise_scale/b_simple" not in found["series"][0]
    assert found["settings"] == {}


def test_only_settings_that_differ_are_told_and_a_missing_one_is_no_value(tmp_path: Path):
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "b", 64, width=32)
    with (tmp_path / "b" / "config.yaml").open("a") as file:
        file.write("only_here: 1\n")
    found = comparison(read_evidence([tmp_path]).runs)
    assert found["settings"] == {
        "batch.total": {"values": ["32", "64"], "of": [0, 1]},
        "model.width": {"values": ["16", "32"], "of": [0, 1]},
        "only_here": {"values": ["1"], "of": [-1, 0]},
    }


def test_many_long_runs_are_thinned_with_both_ends_kept(tmp_path: Path):
    for number in range(20):
        write_run(tmp_path / str(number), 64, num_rows=500)
    found = comparison(read_evidence([tmp_path]).runs)
    for one in found["series"]:
        samples = one["eval/val_loss"][1]
        assert len(samples) == 200
        assert (samples[0], samples[-1]) == (16, 8192)
    assert sum(len(series[0]) for one in found["series"] for series in one.values()) <= 40_000

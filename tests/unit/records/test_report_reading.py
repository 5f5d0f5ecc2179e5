"""`largebatch report` finds runs and records below what it is given, and names what it cannot use."""

from __future__ import annotations

from pathlib import Path

from largebatch.records.report.evidence import differing
from largebatch.records.report.reading import read_evidence
from tests.unit.records.report_folders import write_json, write_run


def test_every_run_and_record_below_a_folder_is_found_once(tmp_path: Path):
    write_run(tmp_path / "sgd" / "today", 64)
    write_run(tmp_path / "lars" / "today", 32)
    write_run(tmp_path / "lars" / "today" / "checkpoints" / "no_run", 32)
    write_json(tmp_path / "measured" / "variance.json", {"noise": {}, "with_replacement": {}})
    found = read_evidence([tmp_path, tmp_path / "lars", tmp_path / "sgd" / "today"])
    assert [(run.name, run.global_batch_size) for run in found.runs] == [("lars/today", 32), ("sgd/today", 64)]
    assert [record.name for record in found.of("variance")] == ["measured"]
    assert not found.left_out


def test_what_a_run_says_of_itself_is_read(tmp_path: Path):
    (run,) = read_evidence([write_run(tmp_path / "a", 64, accuracy=0.75)]).runs
    assert (run.task, run.optimizer, run.status) == ("digits, ConvNet", "LARS", "finished")
    assert (run.steps, run.samples_seen, run.num_samples, run.step_s) == (128, 8192, 1024, 0.5)
    assert (run.global_batch_size, run.world_size, run.micro_batch_size) == (64, 1, 16)
    assert run.last("eval/val_accuracy") == 0.75
    assert run.last("noise_scale/trace") is None


def test_broken_folders_are_named_with_the_reason(tmp_path: Path):
    for name, file, text in (
        ("no_plan", "plan.json", None), ("torn_plan", "plan.json", '{"global_batch_size": 3'),
        ("wrong_plan", "plan.json", '{"global_batch_size": "x"}'), ("no_rows", "metrics.jsonl", '{"step": 1, "samp'),
        ("killed", "metrics.jsonl", None), ("bad_config", "config.yaml", "a: [b"), ("list", "summary.json", "[1]"),
        ("bytes", "plan.json", b"\xff\xfe"),
    ):  # fmt: skip
        path = write_run(tmp_path / name, 32) / file
        path.unlink()
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    write_json(tmp_path / "measured" / "gap.json", {"parts": []})
    (tmp_path / "empty").mkdir()
    found = read_evidence([tmp_path, tmp_path / "empty", tmp_path / "nowhere", tmp_path / "no_plan" / "config.yaml"])
    assert not found.runs
    reasons = {one.path.name: one.reason for one in found.left_out}
    assert reasons.keys() == {
        "no_plan", "torn_plan", "wrong_plan", "no_rows", "killed", "bad_config", "list", "bytes", "gap.json", "empty",
        "nowhere", "config.yaml",
    }  # fmt: skip
    assert reasons["no_plan"] == "plan.json is missing"
    assert reasons["torn_plan"].startswith("plan.json is half written")
    assert reasons["no_rows"] == "metrics.jsonl has no whole row"
    assert reasons["killed"] == "metrics.jsonl is missing"
    assert reasons["gap.json"] == "has no train_loss"
    assert reasons["nowhere"] == "does not exist"
    assert reasons["config.yaml"] == "is no folder"


def test_a_run_without_a_summary_is_unfinished_not_broken(tmp_path: Path):
    (run,) = read_evidence([write_run(tmp_path / "a", 32, status=None)]).runs
    assert run.status == "unfinished"


def test_of_the_runs_of_a_study_only_those_of_its_points_count(tmp_path: Path):
    for name in ("chosen", "tried", "tried_too"):
        write_run(tmp_path / "study" / "runs" / name, 32)
    write_run(tmp_path / "alone", 32)
    write_json(tmp_path / "study" / "study.json", {"points": [{"runs": ["runs/chosen"]}, {"runs": None}]})
    found = read_evidence([tmp_path])
    assert {run.name for run in found.runs} == {"alone", "chosen"}
    assert found.num_trials == 2


def test_runs_differ_in_what_is_not_the_batch_or_the_seed(tmp_path: Path):
    write_run(tmp_path / "a", 32, seed=0)
    write_run(tmp_path / "b", 64, seed=1, width=32)
    assert differing([run.settings for run in read_evidence([tmp_path]).runs]) == ["model.width"]

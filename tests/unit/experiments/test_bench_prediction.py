"""`bench prediction`: held-out runs are predicted from others alone, and a table counts what they took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largebatch.experiments.bench import prediction
from largebatch.experiments.bench.prediction import DELAY_S, LOADING_S, Job, Settings, jobs, measure


def test_there_are_30_held_out_runs_and_none_is_among_those_it_is_predicted_from(tmp_path: Path):
    planned = jobs(Settings())
    held_out = [job for job in planned if job.is_held_out]
    assert sum(job.cell in {f"{task}-{ranks}" for task in ("mlp", "convnet", "gpt") for ranks in (1, 2)}
               for job in held_out) >= 30  # fmt: skip
    assert len({job.folder(tmp_path) for job in planned}) == len(planned)
    for job in held_out:
        (earlier,) = [part for part in job.command(tmp_path) if part.startswith("run.predict_from=")]
        fitted = [one for one in planned if str(one.folder(tmp_path).parent) == earlier.partition("=")[2]]
        assert {one.cell for one in fitted} == {job.cell}
        assert job.batch not in {one.batch for one in fitted}
        assert len(fitted) >= 4


def left(job: Job, folder: Path) -> None:
    """What a run leaves: predictions are 10 % too low in time, and exact in memory."""
    folder.mkdir(parents=True)
    communication_s = 0.01 + (DELAY_S * 1.02 if job.cell == "delayed-2" else 0.0)
    slower = 1.1 if job.name.startswith("3-") else 1.0  # the second run of batch 16
    measured = {"step_time": 0.11001 * slower, "memory": 1e9, "exposed_communication": communication_s,
                "data_wait": job.batch * LOADING_S * 1.05}  # fmt: skip
    values = {"step_time": 0.1, "memory": 1e9, "exposed_communication": communication_s}
    predicted: dict[str, Any] = {
        key: {"value": value, "low": 0.95 * value, "high": 1.05 * value, "measured": measured[key], "widened_by": 1.0}
        for key, value in values.items()
    }
    summary = {"status": "finished", "measured": measured, "predictions": predicted if job.is_held_out else {}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def test_the_table_says_how_far_off_and_how_often_inside_and_finished_runs_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trained: list[Job] = []

    def train(job: Job, root: Path, threads: int) -> bool:
        trained.append(job)
        left(job, job.folder(root))
        return True

    monkeypatch.setattr(prediction, "_train", train)
    settings = Settings(folder=str(tmp_path / "runs"), tasks=("mlp",))
    assert measure(settings)
    shown = capsys.readouterr().out
    assert "| time of a step | 12 | 10.0% | 10.0% | 10% | 0 of 12 | 0 of 12 " in shown
    assert "| peak memory of a process | 12 | 0.0% | 0.0% | 5% | 12 of 12 | 12 of 12 " in shown
    assert "| all-reduce, measured | 50.0 ms | 51.0 ms | 2.0% |" in shown
    assert "| all-reduce, predicted | 50.0 ms | 51.0 ms | 2.0% |" in shown
    assert "| loading of 24 samples | 24.0 ms | 25.2 ms | 5.0% |" in shown
    assert "differ in the time of a step by 5.0% (median of 8 pairs), at most by 10.0%." in shown
    record = json.loads((tmp_path / "runs/prediction.json").read_text(encoding="utf-8"))
    assert len(record["held_out"]) == 36
    count = len(trained)
    assert count == len(jobs(settings))
    lost = trained[3].folder(tmp_path / "runs") / "summary.json"
    lost.write_text('{"status": "stopped"}', encoding="utf-8")
    assert measure(settings)
    assert trained[count:] == [trained[3]]


def test_a_run_that_fails_ends_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prediction, "_train", lambda *_: False)
    assert not measure(Settings(folder=str(tmp_path)))

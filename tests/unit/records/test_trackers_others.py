"""MLflow and Trackio through their own libraries, which the development environment does not have: pip install them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from largebatch.records.trackers import MlflowTracker, TrackioTracker
from largebatch.run.trackers import run_ids

ROWS: list[dict[str, Any]] = [
    {"step": 1, "samples_seen": 96, "train/loss": 0.5, "note": "warmup"},
    {"step": 2, "samples_seen": 192, "train/loss": math.nan},
]
CONFIG = {"batch": {"total": 96}, "optimizer": {"_target_": "torch.optim.SGD", "betas": [0.9, 0.999]}}


def picture(folder: Path) -> Path:
    plot = folder / "training.png"
    Figure(figsize=(3, 2)).savefig(plot, dpi=10)
    return plot


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # without a database, as mlflow-skinny is
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return (tmp_path / "mlruns").as_uri()


def test_mlflow_has_rows_at_samples_seen_config_pictures_and_status(mlflow_uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = MlflowTracker(config=CONFIG, tracking_uri=mlflow_uri, name="mine")
    for row in ROWS:
        tracker.log(row)
    tracker.finish({"status": "finished", "steps": 2}, [picture(tmp_path)])
    assert tracker.problems == []
    client = MlflowClient(tracking_uri=mlflow_uri)
    (run_id,) = tracker.run_ids.values()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "largebatch"
    assert run.data.params["batch.total"] == "96"
    assert run.data.params["optimizer.betas"] == "[0.9, 0.999]"
    assert run.data.tags["note"] == "warmup"
    first, second = client.get_metric_history(run_id, "train/loss")
    assert (first.step, first.value) == (96, 0.5)
    assert second.step == 192
    assert math.isnan(second.value)
    assert [one.path for one in client.list_artifacts(run_id, "plots")] == ["plots/training.png"]


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    first = MlflowTracker(config=CONFIG, tracking_uri=mlflow_uri)
    first.log(ROWS[0])
    first.finish({"status": "stopped"}, [])
    run_id = first.run_ids["mlflow_run_id"]
    assert MlflowClient(tracking_uri=mlflow_uri).get_run(run_id).info.status == "KILLED"
    second = MlflowTracker(config=CONFIG, tracking_uri=mlflow_uri, run_id=run_id)
    second.log({"step": 2, "samples_seen": 192, "train/loss": 0.25})
    second.finish({"status": "finished"}, [])
    history = MlflowClient(tracking_uri=mlflow_uri).get_metric_history(run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(96, 0.5), (192, 0.25)]
    assert run_ids([second]) == {"mlflow_run_id": run_id}


def test_a_server_that_is_gone_costs_rows_and_never_the_run(
    mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        tracker = MlflowTracker(config=CONFIG, tracking_uri="http://127.0.0.1:9")
        tracker.log(ROWS[0])
        tracker.finish({"status": "finished"}, [])
    assert tracker.run_ids == {}
    (problem,) = tracker.problems
    assert problem.startswith("MLflow: no MLflow run; the records are in metrics.jsonl")


def test_trackio_has_rows_at_samples_seen_and_resumes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    for module in ("trackio.utils", "trackio.sqlite_storage"):  # the folder is read when it is imported
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path)
    tracker = TrackioTracker(config=CONFIG, name="mine")
    tracker.log(ROWS[0])
    tracker.finish({"status": "stopped", "steps": 1}, [picture(tmp_path)])
    assert (tracker.problems, tracker.run_ids) == ([], {"trackio_run_name": "mine"})
    assert tracker.show_command == "trackio show --project largebatch"
    second = TrackioTracker(config=CONFIG, name="another", run_name="mine")
    second.log({"step": 2, "samples_seen": 192, "train/loss": 0.25})
    second.finish({"status": "finished"}, [])
    logged = [
        (row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("largebatch", "mine") if "train/loss" in row
    ]
    assert logged == [(96, 0.5), (192, 0.25)]
    assert SQLiteStorage.get_runs("largebatch") == ["mine"]

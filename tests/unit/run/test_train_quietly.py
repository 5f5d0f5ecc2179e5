from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.distributed.signals import StopRequest
from largebatch.records.checkpoint import load_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.train_quietly import train_quietly

SMALL = (
    "model=linear",
    "batch.total=64",
    "length=5steps",
    "schedule.warmup=1steps",
    "observers.metrics.every=1",
    "observers.evaluation.every=null",
)


def test_a_quiet_run_says_nothing_and_leaves_the_rows_of_a_loud_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    quiet = train_quietly(compose_config(SMALL), tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    assert main(["train", *SMALL, f"run.dir={tmp_path / 'loud'}", "logger=none"]) == 0
    loud = [json.loads(line) for line in (tmp_path / "loud" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in quiet.rows if "train/loss" in row] == [
        row["train/loss"] for row in loud if "train/loss" in row
    ]
    assert (quiet.status, quiet.summary["steps"]) == ("finished", 5)
    written = {file.name for file in quiet.folder.iterdir()}
    assert {"config.yaml", "plan.json", "metrics.jsonl", "summary.json", "environment.json"} <= written
    assert json.loads((quiet.folder / "summary.json").read_text()) == quiet.summary | {"problems": []}


def test_the_model_has_the_last_weights(tmp_path: Path):
    trained = train_quietly(compose_config(SMALL), tmp_path / "run")
    saved = load_checkpoint(Path(trained.summary["checkpoint"])).tensors["model"]
    assert all(torch.equal(saved[name], value) for name, value in trained.model.state_dict().items())


def test_wrong_input_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"batch\.total"):
        train_quietly(compose_config([*SMALL, "batch.total=0"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_config_stays_as_it_was(tmp_path: Path):
    config = compose_config(SMALL)
    before = OmegaConf.to_yaml(config)
    train_quietly(config, tmp_path / "run")
    assert OmegaConf.to_yaml(config) == before


def test_a_stop_ends_the_run_after_the_step(tmp_path: Path):
    trained = train_quietly(compose_config(SMALL), tmp_path / "run", stop=lambda: True)
    assert trained.status == "stopped"
    assert trained.summary["steps"] < 5


def test_a_run_that_is_stopped_before_its_first_row_ends_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """No metrics, and no evaluation, since a stopped run makes none: there is nothing to draw."""
    rare = [*SMALL, "observers.metrics.every=100", "length=1000steps"]
    assert train_quietly(compose_config(rare), tmp_path / "quiet", stop=lambda: True).rows == []
    monkeypatch.setattr(StopRequest, "__call__", lambda stop: True)
    assert main(["train", *rare, "logger.wandb.mode=disabled", f"run.dir={tmp_path / 'loud'}"]) == 75
    assert "resume=auto" in capfd.readouterr().out
    assert json.loads((tmp_path / "loud" / "summary.json").read_text())["problems"] == []

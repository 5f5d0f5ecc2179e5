"""`largebatch.train` and `largebatch.plan`: the verbs for notebooks and programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor

import largebatch
from largebatch import ConfigError
from largebatch.__main__ import main
from largebatch.models import Linear

SMALL = ["debug=tiny", "logger=none", "length=3steps"]


@pytest.fixture(autouse=True)
def _surroundings(in_a_folder: None, no_launcher: None) -> None: ...


class Interrupting(Linear):
    """Ctrl-C in a forward pass, long after the dry run."""

    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        Interrupting.calls += 1
        if Interrupting.calls == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(inputs)


def test_a_call_makes_the_run_of_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Twice in one process, the second time silently and inside of an event loop."""
    run = largebatch.train([*SMALL, "run.dir=one"])
    assert (run.status, run.folder, run.summary["samples_seen"]) == ("finished", Path("one"), 192)
    assert "accuracy gap" in capfd.readouterr().out
    assert json.loads((tmp_path / "one" / "summary.json").read_text())["eval/val_loss"] == run.summary["eval/val_loss"]

    async def cell() -> Any:
        return largebatch.train([*SMALL, "run.dir=two"], quiet=True)

    again = asyncio.run(cell())
    assert capfd.readouterr() == ("", "")
    for ours, theirs in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert main(["train", *SMALL, "run.dir=three"]) == 0
    assert (tmp_path / "three" / "overrides.txt").read_text().replace("three", "two") == (
        tmp_path / "two" / "overrides.txt"
    ).read_text()
    rows = largebatch.read_metrics(tmp_path / "three" / "metrics.jsonl")
    assert [row.get("train/loss") for row in again.rows] == [row.get("train/loss") for row in rows]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["batch.total=-5", "seed=x"], ["batch.total=-5", "seed=x"]),  # by the schema
        (["batch.totl=5"], ["Did you mean 'batch.total'?"]),  # by Hydra
        (["model=mlq"], ["'model=mlp'"]),
    ],
)
@pytest.mark.parametrize("verb", [largebatch.train, largebatch.plan])
def test_wrong_input_is_a_value_error_with_all_that_is_wrong(
    verb: Any,
    overrides: list[str],
    said: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """On every rank: whose program it is decides what to print, and torchrun reads what it raises."""
    if verb is largebatch.plan:
        for name, value in (("LOCAL_RANK", "1"), ("TORCHELASTIC_RUN_ID", "x"), ("TORCHELASTIC_ERROR_FILE", "e.json")):
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        verb([*SMALL, *overrides])
    assert isinstance(caught.value, ConfigError)
    assert len(caught.value.errors) == len(said)
    assert [one for one in said if one not in str(caught.value)] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overrides", ["batch.total=64", ["--multirun", "seed=1,2"], [("seed", 1)]])
def test_what_is_no_list_of_settings_is_refused(overrides: Any):
    with pytest.raises(TypeError, match=r"give a list|is no KEY=VALUE"):
        largebatch.train(overrides)


def test_choices_of_a_folder_of_ones_own(tmp_path: Path):
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: torch.nn.Sequential\n_args_: [{_target_: torch.nn.Flatten}]\n")
    with pytest.raises(ConfigError, match="Sequential"):  # it has nothing to train: the choice was found
        largebatch.train([*SMALL, "model=mine"], config_dir=tmp_path / "conf")


def test_the_plan_is_that_of_the_verb(capsys: pytest.CaptureFixture[str]):
    overrides = ["debug=tiny", "launcher.num_processes=3", "plan.memory=1GiB", "plan.device=cpu"]
    record = largebatch.plan(overrides)
    capsys.readouterr()
    assert main(["plan", *overrides, "plan.format=json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(record))
    assert record["rank_batch_sizes"] == [22, 21, 21]


def test_ctrl_c_is_raised_once_the_run_is_saved(tmp_path: Path):
    Interrupting.calls = 0
    given = [*SMALL, f"model._target_={__name__}.Interrupting", "length=40steps", "run.dir=mine", "resume=auto"]
    with pytest.raises(KeyboardInterrupt, match="SIGINT"):
        largebatch.train(given, quiet=True)
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert 0 < summary["steps"] < 40
    run = largebatch.train(given, quiet=True)
    assert (run.status, run.summary["steps"]) == ("finished", 40)
    again = largebatch.train(given, quiet=True)  # there is nothing left to do
    same = [key for key in run.summary if key.startswith(("steps", "samples_seen", "eval/val", "gap/", "best/"))]
    assert len(same) > 8
    assert [again.summary[key] for key in same] == [run.summary[key] for key in same]


def test_a_program_of_hydra_keeps_its_own_config(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("value: 3\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert largebatch.plan(["debug=tiny"])["global_batch_size"] == 64
        assert compose("own").value == 3
    assert not GlobalHydra.instance().is_initialized()

"""Checkpoints beside the training, the best one, and what happens when one cannot be written."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

import largebatch.training.observers.checkpoints as observed
from largebatch.cli.composition.composing import compose_config
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import CheckpointError, load_checkpoint, newest_valid, save_checkpoint
from largebatch.run.train_quietly import Trained, train_quietly
from tests.watching import AfterStep

SMALL = ("model=linear", "data=synthetic", "batch.total=64", "length=8steps", "schedule.warmup=1steps")
OFTEN = ("observers.checkpoint.every=2steps", "observers.checkpoint.keep=9", "observers.evaluation.every=null")


def run(folder: Path, *overrides: str, **options: Any) -> Trained:
    return train_quietly(compose_config([*SMALL, *overrides]), folder, **options)


def files(folder: Path) -> dict[str, Any]:
    """Name of each checkpoint -> the fingerprints of its files."""
    return {path.parent.name: json.loads(path.read_text())["files"] for path in folder.rglob("MANIFEST.json")}


def problems(folder: Path) -> list[str]:
    return json.loads((folder / "summary.json").read_text())["problems"]


def test_what_a_thread_writes_is_bit_for_bit_what_the_loop_would_have_written(tmp_path: Path):
    run(tmp_path / "loop", *OFTEN)
    run(tmp_path / "thread", *OFTEN, "observers.checkpoint.background=true")
    written, expected = files(tmp_path / "thread"), files(tmp_path / "loop")
    left_out = expected.keys() - written.keys()  # one that came due while the thread wrote
    assert "step_00000008" in written
    assert written == {name: content for name, content in expected.items() if name not in left_out}
    assert not left_out or any("left out" in line for line in problems(tmp_path / "thread"))


def test_steps_go_on_while_the_disk_does_not_and_the_last_weights_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The write of step 2 ends only after step 7: were the loop to wait for it, it would wait forever."""
    opened, barriers = threading.Event(), list[int]()

    def slow(folder: Path, **options: Any) -> Path:
        assert opened.wait(60)
        return save_checkpoint(folder, **options)

    def release(*_: Any) -> None:
        assert barriers == [], "other ranks wait for no write either"
        opened.set()

    monkeypatch.setattr(observed, "save_checkpoint", slow)
    monkeypatch.setattr(Runtime, "barrier", lambda _: barriers.append(1))
    run(tmp_path, *OFTEN, "observers.checkpoint.background=true", observers=[AfterStep(release, only=7)])
    assert {"step_00000002", "step_00000008"} <= files(tmp_path).keys()
    (problem,) = problems(tmp_path)
    assert "one was left out: the one before it was still being written" in problem
    assert not {"step_00000004", "step_00000006"} & files(tmp_path).keys()
    assert load_checkpoint(tmp_path / "checkpoints" / "step_00000002").step == 2


def refuse(folder: Path, **options: Any) -> Path:
    raise CheckpointError("No space left on device")


@pytest.mark.fault(26)
@pytest.mark.parametrize("background", ["true", "false"])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(observed, "save_checkpoint", refuse)
    trained = run(tmp_path, *OFTEN, f"observers.checkpoint.background={background}")
    assert (trained.status, trained.summary["steps"]) == ("finished", 8)
    assert any("one was not saved: CheckpointError: No space left on device" in line for line in problems(tmp_path))


@pytest.mark.fault(26)
@pytest.mark.parametrize("background", ["true", "false"])
def test_or_it_stops_the_run_where_that_is_asked_for(background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(observed, "save_checkpoint", refuse)
    asked = ("observers.checkpoint.on_error=stop", f"observers.checkpoint.background={background}")
    with pytest.raises(CheckpointError, match=r"No space left on device.*on_error=stop"):
        run(tmp_path, *OFTEN, *asked)


@pytest.mark.parametrize(("metric", "best"), [("eval/val_loss", min), ("eval/val_accuracy", max)])
def test_the_best_checkpoint_is_that_of_the_best_evaluation(metric: str, best: Any, tmp_path: Path):
    trained = run(
        tmp_path, "scaling.base_lr=3", "observers.evaluation.every=1steps", f"observers.checkpoint.best_by={metric}"
    )
    values = {row["step"]: row[metric] for row in trained.rows if metric in row}
    assert len(set(values.values())) > 3
    first = min(step for step, value in values.items() if value == best(values.values()))
    kept, _ = newest_valid(tmp_path / "checkpoints" / "best")
    assert kept is not None
    assert (kept.step, kept.values["best"]) == (first, {metric: values[first]})
    assert [path.name for path in (tmp_path / "checkpoints" / "best").iterdir()] == [f"step_{first:08d}"]


def test_a_resumed_run_knows_the_best_of_before(tmp_path: Path):
    """Started again from the end with a rate that ruins it, the best one stays that of the first part."""
    asked = ("observers.evaluation.every=1steps", "observers.checkpoint.best_by=eval/val_loss")
    trained = run(tmp_path, *asked)
    values = {row["step"]: row["eval/val_loss"] for row in trained.rows if "eval/val_loss" in row}
    going_on = ("resume=auto", "resume_allow=[length,scaling]", "length=10steps", "scaling.base_lr=100")
    run(tmp_path, *asked, *going_on)
    kept, _ = newest_valid(tmp_path / "checkpoints" / "best")
    assert kept is not None
    assert kept.values["best"] == {"eval/val_loss": min(values.values())}

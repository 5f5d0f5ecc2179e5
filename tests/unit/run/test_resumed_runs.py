"""Which checkpoint of its folder a run goes on from, and that nothing in the folder is lost or comes twice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.distributed.rendezvous import LauncherError
from largebatch.records.checkpoint import FORMAT, CheckpointError, newest_valid
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError
from largebatch.run.train_quietly import Trained, train_quietly
from largebatch.training.loop import Observer
from largebatch.training.observers.save_clock import SaveClock
from tests.unit.composing import compose_run
from tests.unit.records.failing_disk import Death

SMALL = (
    "model=mlp", "model.hidden=[8]", "data=synthetic", "batch.total=64", "length=8steps", "schedule.warmup=1steps",
    "observers.evaluation.every=3steps", "observers.metrics.every=1", "observers.ledger.enabled=true",
    "observers.layers.every=2", "observers.checkpoint.every=2steps", "observers.checkpoint.keep=9",
)  # fmt: skip
RECORDS = ("metrics.jsonl", "ledger.jsonl", "layers.jsonl")


def run(folder: Path, *overrides: str, stop_after: int | None = None) -> Trained:
    """With `stop_after`, as if the process had been killed in the step after that one."""
    killer = [] if stop_after is None else [Killer(stop_after)]
    return train_quietly(compose_run(*SMALL, *overrides), folder, observers=killer)


class Killer(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Any, report: Any) -> None:
        if report.step == self.step:
            raise Death


def killed(folder: Path, after: int, *overrides: str) -> None:
    with pytest.raises(Death):
        run(folder, *overrides, stop_after=after)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def kinds(folder: Path) -> dict[str, Counter[tuple[int, str]]]:
    """Of each record: how often every step has rows of each kind, a name before its slash."""
    return {
        name: Counter((row["step"], kind) for row in read_metrics(folder / name) for kind in _kinds(row))
        for name in RECORDS
    }


def _kinds(row: Any) -> set[str]:
    return {key.partition("/")[0] for key in row if "/" in key} or {"ledger"}


def damage(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(10)


def make_newer(checkpoint: Path) -> None:
    manifest = checkpoint / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "format": FORMAT + 1}))


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / "MANIFEST.json").unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "run"
    killed(folder, 5)
    return folder


@pytest.fixture
def stopped(killed_once: Path, tmp_path: Path) -> Path:
    """Killed after step 5, with checkpoints of steps 2 and 4, and moved since."""
    return shutil.copytree(killed_once, tmp_path / "run")


def assert_same(folder: Path, whole: Path) -> None:
    assert (folder / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    assert kinds(folder) == kinds(whole)
    assert all(count == 1 for counted in kinds(folder).values() for count in counted.values())
    ours, theirs = (newest_valid(one / "checkpoints")[0] for one in (folder, whole))
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step
    assert all(torch.equal(one, theirs.tensors["model"][name]) for name, one in ours.tensors["model"].items())


def test_where_no_checkpoint_can_be_used_each_is_listed_and_nothing_is_begun_or_changed(stopped: Path):
    make_newer(stopped / "checkpoints" / "step_00000002")
    damage(stopped / "checkpoints" / "step_00000004")
    shutil.copytree(stopped / "checkpoints" / "step_00000004", stopped / "checkpoints" / "step_00000006")
    remove_manifest(stopped / "checkpoints" / "step_00000006")
    before = content(stopped)
    with pytest.raises(CheckpointError) as refusal:
        run(stopped, "resume=auto")
    assert content(stopped) == before
    told = str(refusal.value)
    assert "None of 3 can be used, and nothing was started or changed" in told
    lines = [line for line in told.splitlines() if line.startswith("  - ")]
    reasons = ("MANIFEST.json: No such file", "has 10 bytes instead of", f"has format {FORMAT + 1}")
    assert [reason in line for reason, line in zip(reasons, lines, strict=True)] == [True] * 3


@pytest.mark.fault(29)
@pytest.mark.parametrize("spoil", [damage, make_newer, remove_manifest])
def test_an_older_one_is_used_the_newer_named_and_kept_and_its_rows_come_once(spoil: Any, stopped: Path, whole: Path):
    newer = stopped / "checkpoints" / "step_00000004"
    spoil(newer)
    before = content(newer)
    run(stopped, "resume=auto")
    assert_same(stopped, whole)
    *_, resumed = read_metrics(stopped / "history.jsonl")
    assert resumed["step"] == 2
    assert len(resumed["passed_over"]) == 1
    assert str(newer) in resumed["passed_over"][0]
    if spoil is not damage:  # that one is ours, and comes again
        assert content(newer) == before


def test_a_best_checkpoint_that_is_the_only_one_is_gone_on_from(tmp_path: Path, whole: Path):
    best = ("observers.checkpoint.every=null", "observers.checkpoint.best_by=eval/val_loss")
    killed(tmp_path, 5, *best)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best"]
    run(tmp_path, "resume=auto", *best)
    assert read_metrics(tmp_path / "history.jsonl")[-1]["step"] == 3
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_a_start_from_nothing_doubles_no_row_of_any_record(resume: str, tmp_path: Path, whole: Path):
    killed(tmp_path, 1, "observers.checkpoint.every=null")
    if resume == "none":
        (tmp_path / "metrics.jsonl").unlink()  # as of a run that was killed before its first row
    run(tmp_path, f"resume={resume}")
    assert_same(tmp_path, whole)


def test_a_run_that_goes_back_sets_later_checkpoints_and_rows_aside(stopped: Path, whole: Path):
    """With another rate: were they left, the next start would take one of them, of a run that is no more."""
    back = ("resume_allow=[scaling]", "scaling.base_lr=0.5")
    killed(stopped, 3, f"resume={stopped}/checkpoints/step_00000002", *back)
    assert [path.name for path in (stopped / "checkpoints.stale-1").iterdir()] == ["step_00000004"]
    assert [row["step"] for row in read_metrics(stopped / "ledger.jsonl")] == [1, 2, 3]
    run(stopped, "resume=auto", *back)
    assert kinds(stopped) == kinds(whole)
    begun = [(row["step"], [one["key"] for one in row["changed"]]) for row in read_metrics(stopped / "history.jsonl")]
    assert begun == [(0, []), (2, ["scaling.base_lr"]), (2, ["scaling.base_lr"])]


def test_records_that_are_no_longer_kept_have_no_rows_of_what_came_again(stopped: Path):
    run(stopped, "resume=auto", "observers.ledger.enabled=false", "observers.layers.every=null")
    assert [row["step"] for row in read_metrics(stopped / "ledger.jsonl")] == [1, 2, 3, 4]


def test_shapes_that_do_not_fit_are_a_report_before_anything_is_written(stopped: Path):
    before = content(stopped)
    wider = ("model.hidden=[9]", "resume_allow=[model.hidden]")
    with pytest.raises(CheckpointError, match=r"weight is float32 \[8, 64\] in the checkpoint and float32 \[9"):
        run(stopped, "resume=auto", *wider)
    assert content(stopped) == before


def test_a_permitted_value_of_the_optimizer_acts_and_is_in_the_history(stopped: Path, whole: Path):
    run(stopped, "resume=auto", "optimizer.momentum=0", "resume_allow=[optimizer.momentum]")
    assert read_metrics(stopped / "history.jsonl")[-1]["changed"] == [
        {"key": "optimizer.momentum", "was": 0.9, "now": 0}
    ]
    saved, _ = newest_valid(stopped / "checkpoints")
    assert saved is not None
    assert [group["options"]["momentum"] for group in saved.values["optimizer"]["groups"]] == [0, 0]
    ours, theirs = (read_metrics(one / "ledger.jsonl") for one in (stopped, whole))
    # The step after the checkpoint begins from its weights; from the one after that on, the velocity is missing.
    assert [one["loss"] == other["loss"] for one, other in zip(ours, theirs, strict=True)] == [True] * 5 + [False] * 3


def test_the_folder_of_one_run_takes_no_checkpoint_of_another(stopped: Path, tmp_path: Path):
    other = shutil.copytree(stopped, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"already holds a run, and resume=.*other is another one"):
        run(stopped, f"resume={other}")
    run(tmp_path / "new", f"resume={other}")


def test_a_folder_that_was_taken_since_it_was_looked_at_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch):
    """Two starts without resume in one second: the second comes to the lock when the first has ended."""
    monkeypatch.setattr("largebatch.run.prepare.folder_problems", lambda config: [])
    before = content(stopped)
    with pytest.raises(LauncherError, match="already holds a run"):
        run(stopped)
    assert content(stopped) == before


def test_other_evaluation_observers_and_micro_batches_need_no_permission(stopped: Path):
    run(
        stopped, "resume=auto", "observers.evaluation.every=2steps", "observers.metrics.every=2",
        "observers.checkpoint.every=null", "observers.checkpoint.keep=1", "observers.noise_scale.every=null",
        "batch.max_micro=32", "logger.plots=false",
    )  # fmt: skip
    assert read_metrics(stopped / "history.jsonl")[-1]["changed"] == []


def test_saving_by_the_clock_changes_nothing_in_the_run(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """As often as it can be agreed on, however long a save takes."""
    monkeypatch.setattr("largebatch.training.observers.save_clock._MOST_OF_THE_TIME", 1e9)
    run(tmp_path, "observers.checkpoint.every=null", "observers.checkpoint.every_minutes=1e-9")
    assert [path.name[-1] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["2", "4", "6", "8"]
    assert_same(tmp_path, whole)


def test_the_clock_asks_once_and_leaves_the_run_nineteen_twentieths_of_its_time(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = SaveClock(100.0)
    asked = []
    for now[0] in (99.0, 100.0, 101.0):
        asked.append(clock.is_due())
    assert asked == [False, True, False]
    with clock.saving():
        now[0] = 111.0  # it took 10 s
    for now[0] in (310.9, 311.0):
        asked.append(clock.is_due())
    assert asked[3:] == [False, True]
    assert not SaveClock().is_due()

"""The folder of a run while somebody tidies up, and while the disk fails: nothing is lost that need not be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.cli.composition.composing import compose_config
from largebatch.records.checkpoint import newest_valid, save_checkpoint
from largebatch.records.folder_lock import FolderLock
from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import JsonlTracker, read_metrics, set_stale_rows_aside, torn_lines
from largebatch.run.train_quietly import Trained, train_quietly
from tests.unit.records.failing_disk import FAILURES, Death, FailingDisk
from tests.watching import AfterStep

SMALL = ("model=linear", "data=synthetic", "batch.total=64", "length=8steps", "schedule.warmup=1steps")
RECORDED = ("observers.checkpoint.every=2steps", "observers.metrics.every=1", "observers.ledger.enabled=true")


def run(folder: Path, *overrides: str, **options: Any) -> Trained:
    return train_quietly(compose_config([*SMALL, *RECORDED, *overrides]), folder, **options)


def problems(folder: Path) -> list[str]:
    return json.loads((folder / "summary.json").read_text())["problems"]


def assert_complete(folder: Path) -> None:
    """All that a run leaves is there, whole, and no draft."""
    assert [row["step"] for row in read_metrics(folder / "ledger.jsonl")] == list(range(1, 9))
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 9))
    found, _ = newest_valid(folder / "checkpoints")
    assert found is not None
    assert found.step == 8
    assert {"config.yaml", "overrides.txt", "plan.json", "environment.json", "summary.json"} <= set(os.listdir(folder))
    assert not [path for path in folder.rglob(".*") if ".tmp-" in path.name]


@pytest.mark.fault(28)
def test_a_folder_that_is_renamed_is_followed_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    trained = run(folder, observers=[AfterStep(lambda *_: folder.rename(moved), only=3)])
    assert trained.folder == moved
    assert not folder.exists()
    assert_complete(moved)
    told = f"{folder} was renamed: it is {moved} now, and everything goes on there"
    assert [line for line in problems(moved) if told in line]
    assert told in capsys.readouterr().err
    assert "unsaved" not in trained.summary


@pytest.mark.fault(28)
def test_a_folder_that_is_removed_is_made_anew_with_all_rows(tmp_path: Path):
    folder = tmp_path / "run"
    trained = run(folder, observers=[AfterStep(lambda *_: shutil.rmtree(folder), only=5)])
    assert_complete(folder)
    first, second = problems(folder)
    assert f"{folder} was removed: it is made anew with config and rows" in first
    assert "step_00000004 was removed while the run went on" in second
    assert "unsaved" not in trained.summary


@pytest.mark.fault(28)
def test_where_it_cannot_be_made_anew_the_run_goes_on_and_its_end_tells_what_is_not_saved(tmp_path: Path):
    folder = tmp_path / "run"

    def replace_by_a_file(*_: object) -> None:
        shutil.rmtree(folder)
        folder.write_text("of somebody else")

    trained = run(folder, observers=[AfterStep(replace_by_a_file, only=5)])
    assert (trained.status, trained.summary["steps"]) == ("finished", 8)
    assert "cannot be written" in trained.summary["unsaved"]
    assert (trained.rows, trained.summary["checkpoint"]) == ([], None)
    assert folder.read_text() == "of somebody else"


@pytest.mark.fault(28)
def test_a_removed_checkpoint_is_told(tmp_path: Path):
    def remove(step: int) -> None:
        shutil.rmtree(tmp_path / "checkpoints" / f"step_{step:08d}")

    trained = run(
        tmp_path, observers=[AfterStep(lambda *_: remove(4), only=4), AfterStep(lambda *_: remove(6), only=7)]
    )
    assert_complete(tmp_path)
    assert sum("was removed while the run went on" in line for line in problems(tmp_path)) == 2
    assert "unsaved" not in trained.summary


def records_of_a_run(folder: Path, name: str, steps: range) -> None:
    """What a run leaves from one start to its end, without the training; it saves after every other step."""
    paths = RunFolder(folder)
    with FolderLock(folder), contextlib.suppress(OSError):  # a run that cannot begin is refused
        paths.write_inputs(config_yaml=f"name: {name}\n", overrides=[name], plan={"name": name})
        for path in (paths.metrics, paths.ledger):
            set_stale_rows_aside(path, steps.start - 1)
        trackers = [JsonlTracker(path) for path in (paths.metrics, paths.ledger)]
        for step in steps:
            for tracker in trackers:
                tracker.log({"step": step, "samples_seen": 32 * step})
            if step % 2 == 0:
                with contextlib.suppress(Exception):
                    tensors = {"model": {"weight": torch.full((3,), float(step))}}
                    save_checkpoint(paths.checkpoints, step=step, tensors=tensors, values={"step": step}, keep=2)
        for tracker in trackers:
            tracker.finish({}, [])
        paths.write_summary({"name": name}, [])
        paths.leave()


def assert_old_or_new(folder: Path) -> None:
    """Every record is whole, and of the former start or of the one that failed."""
    for name in ("plan.json", "summary.json"):
        assert json.loads((folder / name).read_text())["name"] in ("former", "new")
    assert (folder / "config.yaml").read_text() in ("name: former\n", "name: new\n")
    for name in ("metrics.jsonl", "ledger.jsonl"):
        assert [row["step"] for row in read_metrics(folder / name)][:4] == [1, 2, 3, 4], (
            "rows of before are as they were"
        )
    found, passed_over = newest_valid(folder / "checkpoints")
    assert passed_over == []
    assert found is not None
    assert found.step in (4, 6, 8)
    assert found.tensors["model"]["weight"].tolist() == [float(found.step)] * 3


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    ("error", "stride"),
    [
        (None, 3),
        (errno.ENOSPC, 7),
        (errno.EIO, 9),
        *(pytest.param(error, 1, marks=pytest.mark.soak) for error in FAILURES),
    ],
)
def test_whichever_call_of_a_run_fails_its_records_are_whole_and_the_next_start_completes_them(
    error: int | None, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A full disk stays full, and of the other errors there is one. The soak takes every call in turn."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of a thousand files it would take minutes
    former = tmp_path / "former"
    records_of_a_run(former, "former", range(1, 6))
    call = 0
    while True:
        folder = tmp_path / f"run_{call}"
        shutil.copytree(former, folder)
        with monkeypatch.context() as patch, contextlib.suppress(Death, OSError):
            disk = FailingDisk(patch, call, error, lasting=error == errno.ENOSPC)
            records_of_a_run(folder, "new", range(5, 9))
        assert_old_or_new(folder)
        records_of_a_run(folder, "new", range(5, 9))
        assert [row["step"] for row in read_metrics(folder / "ledger.jsonl")] == list(range(1, 9))
        assert torn_lines(folder / "metrics.jsonl") == []
        assert not [path for path in folder.rglob(".*") if ".tmp-" in path.name]
        shutil.rmtree(folder)
        if disk.failed is None:
            break
        call += stride
    assert call > 60, "the injection misses the code"


@contextlib.contextmanager
def small_disk(place: Path, size: str):
    """A file system of its own; only root may mount one."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.fault(26)
@pytest.mark.parametrize("is_freed", [True, False])
def test_a_full_disk_costs_what_does_not_fit_and_the_end_says_so(is_freed: bool, tmp_path: Path):
    """Full after step 5; with room again after step 7 the last weights are saved."""
    disk, filler = tmp_path / "disk", tmp_path / "disk" / "filler"

    def fill(*_: object) -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))

    with small_disk(disk, "400k"):
        actions = [AfterStep(fill, only=5), *([AfterStep(lambda *_: filler.unlink(), only=7)] if is_freed else [])]
        trained = run(disk / "run", observers=actions)
        assert (trained.status, trained.summary["steps"]) == ("finished", 8)
        found, passed_over = newest_valid(disk / "run" / "checkpoints")
        assert passed_over == []
        assert found is not None
        assert found.step == (8 if is_freed else 4)
        assert ("unsaved" in trained.summary) == (not is_freed)
        steps = [row["step"] for row in read_metrics(disk / "run" / "ledger.jsonl")]
        assert steps[:5] == [1, 2, 3, 4, 5]
        assert torn_lines(disk / "run" / "ledger.jsonl") == []
        if is_freed:
            assert any("The checkpoint of step 6 cannot be written" in line for line in problems(disk / "run"))
            assert 8 in steps
        else:
            assert "No space left on device" in trained.summary["unsaved"]


def test_rows_are_on_the_disk_before_the_checkpoint_of_their_step_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a loss of power would leave at the moment of each rename: the bytes that were forced by then."""
    forced: dict[int, int] = {}
    held: list[tuple[str, dict[str, int]]] = []
    fsync, rename = os.fsync, os.rename

    def forcing(file: int) -> None:
        fsync(file)
        forced[os.fstat(file).st_ino] = os.fstat(file).st_size

    def renaming(source: Path, target: Path) -> None:
        if Path(target).name.startswith("step_"):
            files = (tmp_path / "metrics.jsonl", tmp_path / "ledger.jsonl")
            held.append((Path(target).name, {one.name: forced.get(one.stat().st_ino, 0) for one in files}))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", forcing)
    monkeypatch.setattr(os, "rename", renaming)
    run(tmp_path)
    assert [name for name, _ in held][:2] == ["step_00000002", "step_00000004"]
    for name, sizes in held:
        for file, size in sizes.items():
            lines = (tmp_path / file).read_bytes()[:size].splitlines()
            assert json.loads(lines[-1])["step"] == int(name.removeprefix("step_")), (name, file)

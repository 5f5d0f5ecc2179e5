"""`largebatch checkpoint`: damage is found in any byte, and weights come out as they went in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from largebatch.__main__ import main
from largebatch.experiments.measure.weights import brief_path
from largebatch.records.checkpoint import save_checkpoint
from largebatch.records.run_folder import RunFolder
from largebatch.run.resume import find_checkpoint

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "running": torch.tensor(3)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        tensors = {"model": {name: value + step for name, value in WEIGHTS.items()}, "optimizer": {"m": torch.ones(2)}}
        save_checkpoint(tmp_path / "run" / "checkpoints", step=step, tensors=tensors, values={"step": step}, keep=2)
    return tmp_path / "run"


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_whole_checkpoints_are_valid(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert "2 valid, 0 damaged" in capsys.readouterr().out


@pytest.mark.fault(30)
@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "values.json"])
def test_one_bit_anywhere_is_found(name: str, run: Path, capsys: pytest.CaptureFixture[str]):
    damage(run / "checkpoints" / "step_00000002" / name)
    assert main(["checkpoint", "verify", str(run.parent)]) == 1
    assert "1 valid, 1 damaged" in capsys.readouterr().out


def test_a_checkpoint_without_its_manifest_is_damaged(run: Path):
    (run / "checkpoints" / "step_00000001" / "MANIFEST.json").unlink()
    assert main(["checkpoint", "verify", str(run / "checkpoints" / "step_00000001")]) == 1


def test_weights_come_out_as_they_went_in(run: Path, tmp_path: Path):
    out = tmp_path / "weights.safetensors"
    assert main(["checkpoint", "export", str(run), "--out", str(out)]) == 0
    exported = load_file(out)
    assert exported.keys() == WEIGHTS.keys()
    assert all(torch.equal(exported[name], WEIGHTS[name] + 2) for name in WEIGHTS)
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "2"}  # what transformers asks for
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_averaged_weights_come_out_with_the_buffers_of_the_run(run: Path, tmp_path: Path):
    tensors = {"model": WEIGHTS, "optimizer": {"m": torch.ones(2)}, "ema": {"weight": torch.full((2, 3), 0.5)}}
    save_checkpoint(run / "checkpoints", step=3, tensors=tensors, values={"step": 3}, keep=3)
    assert main(["checkpoint", "export", str(run), "--ema", "--out", str(tmp_path / "ema.safetensors")]) == 0
    exported = load_file(tmp_path / "ema.safetensors")
    assert torch.equal(exported["weight"], tensors["ema"]["weight"])
    assert torch.equal(exported["running"], WEIGHTS["running"])
    older = run / "checkpoints" / "step_00000002"
    assert main(["checkpoint", "export", str(older), "--ema", "--out", str(tmp_path / "no.safetensors")]) == 2
    assert not (tmp_path / "no.safetensors").exists()


def test_of_a_run_the_newest_valid_weights_are_exported_and_the_damaged_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    damage(run / "checkpoints" / "step_00000002" / "model.safetensors")
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "w.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "w.safetensors")["weight"], WEIGHTS["weight"] + 1)
    assert "step_00000002" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "step"),
    [("", 2), ("checkpoints", 2), ("checkpoints/best", 1), ("checkpoints/best/step_00000001", 1), ("renamed", 1)],
)
def test_a_checkpoint_may_be_named_by_itself_by_its_folder_or_by_its_run(run: Path, folder: str, step: int):
    """The same for `measure.checkpoint` and `resume`."""
    save_checkpoint(run / "checkpoints" / "best", step=1, tensors={"model": WEIGHTS}, values={}, keep=1)
    shutil.copytree(run / "checkpoints" / "step_00000001", run / "renamed")
    out = run.parent / "weights.safetensors"
    assert main(["checkpoint", "export", str(run / folder), "--out", str(out)]) == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["step"] == str(step)
    runtime: Any = SimpleNamespace(is_main=True, world_size=1, broadcast=lambda value: value)
    found, _ = find_checkpoint(str(run / folder), RunFolder(run), runtime)
    assert found is not None
    assert found.step == step


def test_a_folder_without_a_checkpoint_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "plots").mkdir()
    assert main(["checkpoint", "export", str(run / "plots")]) == 1
    assert "plots: no valid checkpoint. There is none at all." in capsys.readouterr().err


def test_damaged_weights_are_not_exported(run: Path, tmp_path: Path):
    path = run / "checkpoints" / "step_00000002"
    damage(path / "model.safetensors")
    assert main(["checkpoint", "export", str(path), "--out", str(tmp_path / "w.safetensors")]) == 1
    assert not (tmp_path / "w.safetensors").exists()


def test_nothing_is_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mine.safetensors"
    out.write_text("mine")
    assert main(["checkpoint", "export", str(run), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize("arguments", [[], ["verify"], ["verfy", "x"], ["verify", "absent"], ["export", "absent"]])
def test_wrong_input_exits_with_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(["checkpoint", *arguments]) == 2


def test_titles_of_pictures_name_weights_without_the_folders_above_their_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    """Pictures are shown around: README's had the path of somebody's machine."""
    best = run / "checkpoints" / "best" / "step_00000001"
    monkeypatch.chdir(run.parent)
    assert brief_path(best) == "run/checkpoints/best/step_00000001"
    monkeypatch.chdir(run / "checkpoints")
    assert brief_path(best) == "best/step_00000001"
    assert brief_path(Path("/home/me/secret/mine/checkpoints/step_00000002")) == "mine/checkpoints/step_00000002"
    assert brief_path(Path("/home/me/renamed")) == "renamed"


def test_a_place_where_nothing_can_be_written_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    assert main(["checkpoint", "export", str(run), "--out", str(tmp_path / "file" / "w.safetensors")]) == 2
    assert "file/w.safetensors cannot be written: " in capsys.readouterr().err


def test_a_mistyped_folder_of_an_export_is_refused_and_not_made(run: Path, tmp_path: Path):
    out = tmp_path / "new" / "folder" / "w.safetensors"
    assert main(["checkpoint", "export", str(run), "--out", str(out)]) == 2
    assert not (tmp_path / "new").exists()

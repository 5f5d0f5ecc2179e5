"""Weights are read from the files that programs write, and from no pickle that could run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from largebatch.records.checkpoint import save_checkpoint
from largebatch.records.weights_file import read_weights

OTHER = {"w": torch.zeros(2)}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(3, 2), "b": torch.randn(2).bfloat16(), "count": torch.tensor(7)}


def of_safetensors(folder: Path, weights: Any) -> Path:
    save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def of_torch(folder: Path, weights: Any) -> Path:
    torch.save(weights, folder / "weights.pt")
    return folder / "weights.pt"


def of_timm(folder: Path, weights: Any) -> Path:
    torch.save({"epoch": 3, "state_dict": weights, "state_dict_ema": OTHER}, folder / "weights.pth.tar")
    return folder / "weights.pth.tar"


def of_a_run(folder: Path, weights: Any) -> Path:
    tensors = {"model": weights, "optimizer": OTHER}
    save_checkpoint(folder / "run" / "checkpoints", step=2, tensors=tensors, values={}, keep=1)
    return folder / "run"


def of_transformers(folder: Path, weights: Any) -> Path:
    save_file(weights, folder / "model.safetensors")
    return folder


def in_shards(folder: Path, weights: Any) -> Path:
    for name, one in weights.items():
        save_file({name: one}, folder / f"part-{name}.safetensors")
    index = {"weight_map": {name: f"part-{name}.safetensors" for name in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("write", [of_safetensors, of_torch, of_timm, of_a_run, of_transformers, in_shards])
def test_one_content_has_one_hash_in_every_form(write: Any, tmp_path: Path, weights: dict[str, torch.Tensor]):
    (tmp_path / "plain").mkdir()
    (tmp_path / "form").mkdir()
    plain = read_weights(of_safetensors(tmp_path / "plain", weights))
    found = read_weights(write(tmp_path / "form", weights))
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[name], one) for name, one in weights.items())
    assert found.sha256 == plain.sha256


def test_an_entry_that_is_named_is_taken(tmp_path: Path, weights: dict[str, torch.Tensor]):
    found = read_weights(of_timm(tmp_path, weights), "state_dict_ema")
    assert torch.equal(found.tensors["w"], OTHER["w"])
    with pytest.raises(ValueError, match=r"no entry ema: it holds epoch \(int\), state_dict \(dict\), state_dict_ema"):
        read_weights(of_timm(tmp_path, weights), "ema")


class Runs:
    """What a pickle of somebody else may hold."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize("content", [Runs(), {"model": Runs()}, nn.Linear(2, 2)])
def test_a_pickle_that_could_run_code_is_refused_and_not_run(content: Any, tmp_path: Path, capsys: Any):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"is no file of tensors and plain values.*is not opened"):
        read_weights(tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""


def test_what_holds_no_weights_is_named(tmp_path: Path):
    torch.save([1], tmp_path / "list.pt")
    torch.save({"step": 1}, tmp_path / "values.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    (tmp_path / "empty").mkdir()
    texts = {
        "list.pt": "holds a list",
        "values.pt": r"holds no tensors under names, but step \(int\)",
        "noise.pt": "noise.pt",
        "noise.safetensors": "header",
        "empty": "holds no checkpoint",
        "none.pt": "there is no file or folder",
    }
    for name, text in texts.items():
        with pytest.raises(ValueError, match=text):
            read_weights(tmp_path / name)

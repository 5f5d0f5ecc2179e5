"""A run starts from the weights of a file, on any number of ranks, of which one reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import largebatch.run.prepare as preparing
import largebatch.run.start_weights as start_weights
from largebatch.models import ConvNet
from largebatch.records.checkpoint import CheckpointError
from largebatch.run.build import open_run
from largebatch.run.config.reading import ConfigError
from largebatch.run.method_rows import method_rows
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from tests.multiprocess.test_sent_weights import over_the_group
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_start_weights"
SMALL = ("data=digits", "model=convnet", "model.width=4", "data.limit=64", "batch.total=30", "batch.micro=10",
         "length=2steps", "logger=none", "schedule.warmup=1steps", "observers.progress=false",
         "observers.evaluation.every=null")  # fmt: skip


class Own(ConvNet):
    """A constructor with an argument of this name, as in torchvision."""

    def __init__(self, num_classes: int, in_channels: int, width: int, weights: str | None = None) -> None:
        super().__init__(num_classes, in_channels, width=width)
        self.given = weights


def written(path: Path, num_classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = ConvNet(num_classes, 1, width=4).state_dict()
    save_file({f"module.{name}": one for name, one in state.items()}, path)
    return state


def refuse(*_: Any) -> None:
    raise AssertionError("rank 0 alone reads the file")


def trained(file: str, folder: str) -> dict[str, Any]:
    """The weights that a run starts from and those that it ends with, on this rank."""
    config = compose_run(*SMALL, f"model.weights={file}", f"run.dir={folder}/run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "word_of_rank0", over_the_group)
        if os.environ.get("RANK", "0") != "0":
            patched.setattr(start_weights, "read_weights", refuse)
        prepared = prepare(config, os.environ, joins=True)
    with open_run(prepared, lambda: False, []) as opened:
        begun = {name: one.detach().clone().numpy() for name, one in opened.run.module.state_dict().items()}
        train(opened.run)
        ended = [one.detach().numpy() for one in opened.run.module.parameters()]
    return {"begun": begun, "ended": ended}


def test_every_rank_starts_from_the_file_that_rank_0_reads(ranks: Any, tmp_path: Path):
    truth = written(tmp_path / "w.safetensors")
    for result in ranks(2).run(trained, str(tmp_path / "w.safetensors"), str(tmp_path)):
        assert all((result["begun"][name] == one.numpy()).all() for name, one in truth.items())
        assert any((end != truth[name].numpy()).any() for end, name in zip(result["ended"], truth, strict=False))


def prepared(file: Path, *overrides: str, **form: Any) -> Any:
    given = {"file": str(file), **form}
    text = ", ".join(f"{key}: {str(one).lower() if isinstance(one, bool) else one}" for key, one in given.items())
    return prepare(compose_run(*SMALL, f"model.weights={{{text}}}", *overrides), {})


def test_the_plan_tells_what_was_left_and_strict_refuses_it(tmp_path: Path):
    written(tmp_path / "w.safetensors", num_classes=7)
    with pytest.raises(ConfigError, match=r"2 of another shape \(head.bias: \[7\] in the file.*strict: false"):
        prepared(tmp_path / "w.safetensors")
    run = prepared(tmp_path / "w.safetensors", strict=False)
    ((what, value, why),) = method_rows(run)
    assert (what, value) == ("initial weights", "18 of 20 tensors")
    assert "without the prefix module." in why
    assert "2 of another shape" in why
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="none of its tensors is one of ConvNet's"):
        prepared(tmp_path / "x.safetensors", strict=False)


def test_one_network_of_a_file_by_its_prefix_which_the_error_names(tmp_path: Path):
    truth, file = written(tmp_path / "w.safetensors"), tmp_path / "two.safetensors"
    save_file({f"{of}.{name}": one + (of == "k") for name, one in truth.items() for of in "qk"}, file)
    with pytest.raises(ConfigError, match=rf"none of its tensors.*{{file: {file}, prefix: k.}}' 20 of them fit"):
        prepare(compose_run(*SMALL, f"model.weights={file}"), {})
    with pytest.raises(
        ConfigError, match=r"prefix=v\.: no name of the file begins so: .*\n.*into=neck\.: no tensor of"
    ):
        prepare(compose_run(*SMALL, f"model.weights={{file: {file}, prefix: v., into: neck.}}"), {})
    runs = {of: prepare(compose_run(*SMALL, f"model.weights={{file: {file}, prefix: {of}.}}"), {}) for of in "qk"}
    assert torch.equal(runs["k"].model.head.weight, truth["head.weight"] + 1)
    assert runs["k"].start_weights.sha256 != runs["q"].start_weights.sha256


def test_a_constructor_that_takes_weights_keeps_a_text(tmp_path: Path):
    truth, own = written(tmp_path / "w.safetensors"), f"model._target_={HERE}.Own"
    run = prepare(compose_run(*SMALL, own, "model.weights=IMAGENET1K_V1"), {})
    assert run.model.given == "IMAGENET1K_V1"
    assert run.start_weights is None
    run = prepared(tmp_path / "w.safetensors", own)
    assert run.model.given is None
    assert torch.equal(run.model.head.weight, truth["head.weight"])


def continued(folder: Path, file: Path, *overrides: str) -> nn.Module:
    config = compose_run(*SMALL, f"model.weights={file}", f"run.dir={folder}", *overrides)
    with open_run(prepare(config, {}, joins=True), lambda: False, []) as opened:
        train(opened.run)
        return opened.run.module


def test_a_run_goes_on_with_the_same_content_anywhere_and_with_no_other(tmp_path: Path):
    written(tmp_path / "w.safetensors")
    continued(tmp_path / "run", tmp_path / "w.safetensors")
    torch.save(load_file(tmp_path / "w.safetensors"), tmp_path / "moved.pt")
    continued(tmp_path / "run", tmp_path / "moved.pt", "resume=auto")
    changed = load_file(tmp_path / "w.safetensors")
    changed["module.head.bias"][0] += 1
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"weights to start from differ.*resume_allow=\[start_weights\]"):
        continued(tmp_path / "run", tmp_path / "other.safetensors", "resume=auto")


def test_resume_from_a_file_names_the_key_for_weights(tmp_path: Path):
    written(tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=f"is a file.*model.weights={tmp_path}/w.safetensors"):
        prepare(compose_run(*SMALL, f"resume={tmp_path}/w.safetensors"), {})

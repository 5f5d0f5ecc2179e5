from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from largebatch.__main__ import main
from largebatch.credentials import credential_problems

KEY = "0123456789abcdef" * 2 + "01234567"  # as long as a key of W&B


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"hf_token": "x"}},
        {"model": {"api_key": "x"}},
        {"a": [{"password": "x"}]},
        {"logger": {"anything": KEY}},
        {"data": {"path": "hf_" + "A1b2" * 8}},
        {"data": {"path": "s3://user:word@host/bucket"}},
        {"x": "sk-" + "abcd" * 8},
    ],
)
def test_what_looks_like_a_secret_is_named_and_not_repeated(config: dict[str, object]):
    (problem,) = credential_problems(OmegaConf.create(config))
    assert "looks like a secret" in problem
    assert KEY not in problem
    assert "word@" not in problem


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"hf_token": "${oc.env:HF_TOKEN}"}},
        {"model": {"pad_token": "<pad>", "num_tokens": "5", "tokenizer": "gpt2"}},
        {"data": {"path": "https://host/data", "token": ""}},
        {"run": {"dir": f"runs/{KEY}"}},
        {"optimizer": {"key": 3, "token": 7}},
        {"model": {"revision": KEY}},
    ],
)
def test_what_does_not_is_left_alone(config: dict[str, object]):
    assert credential_problems(OmegaConf.create(config)) == []


def test_a_secret_on_the_command_line_ends_in_no_record_and_on_no_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["model=linear", f"run.dir={tmp_path / 'run'}", f"+data.train.api_key={KEY}", "+nonsense=1"]
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    assert "data.train.api_key: looks like a secret" in printed.err
    assert KEY not in printed.out + printed.err
    assert not (tmp_path / "run").exists()

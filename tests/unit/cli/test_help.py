"""`--help`, `help WORD` and `--version`: from the comments of conf/, the schema and the metadata of packages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.cli.catalogue.composed import Catalogue
from largebatch.run.config.described import type_of
from largebatch.run.config.schema import TrainConfig
from tests.unit.cli.test_catalogue import PRIMARIES

pytestmark = [pytest.mark.usefixtures("in_a_folder"), pytest.mark.quick]
VERB_OF = {
    "find_lr": "find-lr",
    "find_micro": "find-micro",
    "measure": "measure sharpness",
    "textbook": "textbook lars",
}
WIDTHS = (60, 80, 133)


def said(command: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main(command.split()) == code
    return capsys.readouterr().out


@pytest.mark.parametrize("config_name", PRIMARIES)
def test_the_help_of_a_verb_has_its_name_and_every_comment_of_its_keys(
    config_name: str, capsys: pytest.CaptureFixture[str]
):
    page = said(f"{VERB_OF.get(config_name, config_name)} --help", capsys)
    assert page.startswith(f"largebatch {config_name.replace('_', '-')}: ")
    words = " ".join(page.split())
    chosen = {"experiment": ("textbook/lars",)} if config_name == "textbook" else {}
    for setting in Catalogue((Path(conf_dir()),)).settings(config_name, chosen).values():
        assert setting.is_section or f"{setting.key}={setting.value.split(' ')[0]}" in words, setting.key
        assert " ".join(setting.comment.split()) in words, setting.key


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_of_help_is_longer_than_the_terminal_unless_a_word_is(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("train --help", "help optimizer=lars", "help batch", "help warmup", "help bias"):
        lines = said(command, capsys).splitlines()
        long = [line for line in lines if len(line) > width]
        # A command of the header, and what is typed, stay whole: they can be copied.
        assert [line for line in long if len(line.split()) > 1 and " largebatch " not in line and "'" not in line] == []


def test_a_choice_that_does_not_exist_is_not_answered_with_its_group(capsys: pytest.CaptureFixture[str]):
    assert main(["help", "optimizer=larz"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(
        "largebatch help: optimizer=larz: there is no such choice. Did you mean 'lars'? There are: "
    )


def test_help_shows_what_was_typed_beside_it_and_refuses_what_is_wrong(capsys: pytest.CaptureFixture[str]):
    page = said("train optimizer=lamb --help batch.total=96", capsys)
    assert "\n  batch.total=96 " in page
    assert "\n  optimizer.betas=[0.9, 0.999]" in page
    assert "\noptimizer=lamb:" in page
    assert main(["train", "--help", "optimizer=LAMB", "lr=1"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "largebatch: 2 errors on the command line:"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("batch.micro", ("batch.micro=null\n", "from  ", "a whole number, at least 1; or null", "batch.max_micro=256")),
        ("max_micro", ("batch.max_micro=256\n",)),
        ("schedule.power", ("only in  ", "schedule=polynomial", "a number, above 0")),
        ("plan.memory", ("conf/plan.yaml", "plan.dry_run=true")),
        ("guard", ("guard, a group of keys", "guard.window=200")),
        ("optimizer", ("optimizer=lars ", "LARS (You et al. 2017)", "Without it: optimizer=sgd")),
        ("experiment", ("Without it there is none.",)),
        ("optimizer=lars", ("chooses lars=paper", "optimizer.momentum=0.9", "MLPerf's ResNet-50 used 10 at 4096")),
        ("lr", ("scaling.base_lr is the rate at a batch", "parameters.lr_factor=null")),
        ("Hutchinson", ("observers.sharpness.trace_samples=8",)),
        ("plan", ("largebatch plan: print what a run would do",)),
        ("compare", ("usage: largebatch compare",)),
    ],
)
def test_help_tells_about_one_thing(words: str, told: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    page = said(f"help {words}", capsys)
    assert [one for one in told if one not in page] == []


def test_help_about_nothing_is_wrong_input(capsys: pytest.CaptureFixture[str]):
    assert main(["help", "zzzz"]) == 2
    assert "no key, choice or comment has 'zzzz'" in capsys.readouterr().err
    assert "help OPTIMIZER" not in said("help", capsys, code=2)


LENGTH = "a length, such as 30ep, 500steps, 100000samples or 10Btokens"


def test_the_schema_in_words():
    told = {
        "seed": "a whole number, at least 0, below 9223372036854775808",
        "clip_norm": "a number, above 0; or null",
        "scaling.rule": "none, linear or sqrt",
        "schedule.milestones": f"a list [a, b], each {LENGTH}; or null",
        "observers.progress": "true or false",
        "precision.compile": "true or false; or blocks",
        "logger.wandb.tags": "a list [a, b], each a text; or null",
        "model.width": "",
        "no.such.key": "",
    }
    assert {key: type_of(key, TrainConfig) for key in told} == told


def test_the_versions_are_those_that_are_installed(capsys: pytest.CaptureFixture[str]):
    first, *others = said("--version", capsys).splitlines()
    assert first == f"largebatch {version('largebatch')}"
    found = {name: text.strip() for name, _, text in (line.partition(" ") for line in others)}
    assert found["torch"] == torch.__version__
    assert found["CUDA"] == (torch.version.cuda or "none: a build for CPUs")
    assert found["hydra-core"] == version("hydra-core")
    assert {"python", "NCCL", "accelerate", "wandb", "platform", "driver"} <= found.keys()

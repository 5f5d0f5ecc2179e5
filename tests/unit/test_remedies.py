"""What is said below Hydra's own messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.commands.composition import conf_dir

pytestmark = pytest.mark.usefixtures("in_a_folder")
QUOTES = "put the whole argument into single quotes"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["sed=1"], "Did you mean 'seed'?"),
        (["batch.totl=64"], "Did you mean 'batch.total'?"),
        (["optimzer=lars"], "Did you mean 'optimizer'?"),
        (["~observers.progres"], "Did you mean 'observers.progress'?"),
        (["optimizer=sdg"], "Did you mean 'optimizer=sgd'?"),
        (["+debug=tiny"], "debug has a choice already: drop the plus of +debug=tiny."),
        (["batch.total={3"], QUOTES),
        (["run.name='x"], QUOTES),
        (["run.name=two", "words"], QUOTES),
        (["run.dir=a=b"], QUOTES),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_the_nearest_name_or_what_to_type_stands_below_a_message_of_hydra(
    arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "HYDRA_FULL_ERROR" in said.err.splitlines()[-2]
    assert said.err.splitlines()[-1].startswith("largebatch: ")
    assert remedy in said.err.splitlines()[-1]


def test_a_name_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "zzzzzz=1"]) == 2
    assert "largebatch:" not in capsys.readouterr().err


def test_settings_of_a_group_in_braces_are_hydras_business(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "batch={total: 64}"]) == 0
    assert "64 samples" in " ".join(capsys.readouterr().out.split())


def test_only_the_first_rank_of_a_machine_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["plan", "sed=1"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("argument", ["batch=64", "batch=null", "schedule=0.1"])
def test_a_number_for_a_group_is_wrong_input_with_the_choices_and_a_key(
    argument: str, capsys: pytest.CaptureFixture[str]
):
    """Of a number for `batch`, which is meant for `batch.total`, Hydra makes a traceback."""
    assert main(["plan", "seed=1", argument]) == 2
    said = capsys.readouterr().err
    group = argument.partition("=")[0]
    choices = ", ".join(sorted(path.stem for path in Path(conf_dir(), group).glob("*.yaml")))
    assert said.startswith(f"largebatch: {argument}: {group} is a group of settings, chosen by name ({choices}). ")
    assert f"such as {group}." in said
    assert len(said.splitlines()) == 1

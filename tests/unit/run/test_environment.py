from __future__ import annotations

from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.batch.schedule import DECAYS
from largebatch.run.config.environment import comparable
from largebatch.run.config.reading import ConfigError, parse_config, public_values
from largebatch.run.prepare import prepare
from largebatch.run.rank_agreement import run_fingerprint
from tests.unit.composing import compose_run

# (key, value of the variable, what the run gets, what records hold; ...: the text of the config)
READ: list[tuple[str, str, Any, Any]] = [
    ("seed", "7", 7, 7),
    ("clip_norm", "null", None, None),
    ("clip_norm", "1e-1", 0.1, 0.1),
    ("batch.total", "64", 64, 64),
    ("batch.total", "full", "full", ...),
    ("observers.progress", "false", False, False),
    ("scaling.base_lr", "1", 1.0, 1),
    ("model.hidden", "[3, 4]", [3, 4], [3, 4]),
    ("logger.wandb.tags", "[a, b]", ["a", "b"], ...),
    # the schema has a place for texts only: the number of a job is a name
    ("run.name", "4711", "4711", ...),
    ("length", "30ep", "30ep", ...),
    ("guard.policy", "off", "off", ...),
    ("run.name", "a,b", "a,b", ...),  # no sweep
    ("run.name", "${seed}", "${seed}", ...),  # nothing of the environment is looked up
    ("run.name", "\\${x}", "\\${x}", ...),
    ("run.name", "a: [", "a: [", ...),  # no syntax of Hydra
]


@pytest.mark.parametrize(("key", "text", "value", "record"), READ)
def test_a_value_from_the_environment_is_what_typing_it_would_give(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: Any, record: Any
):
    monkeypatch.setenv("LB_VALUE", text)
    written = f"{key}='${{oc.env:LB_VALUE}}'"
    config = compose_run("data=synthetic", "model=mlp", written)
    run, public = parse_config(config).model_dump(), public_values(config)
    for part in key.split("."):
        run, public = run[part], public[part]
    assert run == value
    assert type(run) is type(value)
    assert public == ("${oc.env:LB_VALUE}" if record is ... else record)


def test_below_a_name_of_secrets_a_number_stays_a_text_and_untold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LB_PIN", "123456")
    config = compose_run("data=synthetic", "+model.password='${oc.env:LB_PIN}'", "+model.pin='${oc.env:LB_PIN}'")
    assert parse_config(config).model["password"] == "123456"
    assert parse_config(config).model["pin"] == 123456
    assert public_values(config)["model"]["password"] == "${oc.env:LB_PIN}"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("seed=@", "seed=@: must be a whole number."),
        ("schedule.decay=@", f"schedule.decay=@: choose one of {', '.join(DECAYS)}, wsd, restarts, inverse_sqrt."),
        ("+batch.totl=@", "batch.totl=@: there is no such key. Did you mean 'batch.total'?"),
        ("parameters.lr_factor={head: @}", "parameters.lr_factor.head=@: must be a number."),
        ("run.title='${oc.env:LB_NONE}'", "run.title: the environment has no variable LB_NONE. Export it before the "
         "start, or write a default, ${oc.env:LB_NONE,VALUE}."),
    ],
)  # fmt: skip
def test_a_message_tells_what_is_written_and_not_what_it_became(
    monkeypatch: pytest.MonkeyPatch, override: str, error: str
):
    monkeypatch.setenv("LB_VALUE", "hunter2")
    with pytest.raises(ConfigError) as raised:
        parse_config(compose_run("data=synthetic", override.replace("@", "'${oc.env:LB_VALUE}'")))
    assert raised.value.errors == [error.replace("@", "${oc.env:LB_VALUE}")]


def test_a_variable_that_is_not_there_is_one_line_before_hydra_needs_it(
    capsys: pytest.CaptureFixture[str], in_a_folder: None
):
    for arguments in (["train", "seed=${oc.env:LB_NONE}"], ["train", "-m", "run.root=${oc.env:LB_NONE}", "seed=1,2"],
                      ["study", "run.dir='${oc.env:LB_NONE}'"]):  # fmt: skip
        assert main(arguments) == 2
        assert "the environment has no variable LB_NONE. Export it" in capsys.readouterr().err


def test_runs_differ_by_what_the_environment_says_but_not_by_their_secrets():
    written = {"model": {"name": "${oc.env:LB_NAME}", "token": "${oc.env:LB_TOKEN}", "width": 3}}

    def of(name: str, token: str) -> Any:
        return comparable(written, {"model": {"name": name, "token": token, "width": 3}})

    assert of("a", "tok3n-x9") == of("a", "tok3n-y8")
    assert of("a", "tok3n-x9") != of("b", "tok3n-x9")
    assert of("a", "tok3n-x9")["model"]["name"].startswith("${oc.env:LB_NAME} (hash ")


def test_ranks_with_other_values_of_a_variable_are_not_the_same_run(monkeypatch: pytest.MonkeyPatch, no_launcher: None):
    """A place of data may be another on every machine."""
    found = {}
    for value in ("one", "two"):
        monkeypatch.setenv("LB_VALUE", value)
        given = ["model=linear", "data.name='${oc.env:LB_VALUE}'", "+data.path='/data/${oc.env:LB_VALUE}/x'"]
        found[value] = run_fingerprint(prepare(compose_run("data=synthetic", *given), {}))
    different = {key for key in found["one"] if found["one"][key] != found["two"][key]}
    assert different == {"config data.name"}

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from omegaconf import OmegaConf

from largebatch import conf_dir
from largebatch.__main__ import main
from largebatch.records.credentials import credential_problems, hide_variables, redacted

KEY = "0123456789abcdef" * 2 + "01234567"  # as long as a key of W&B
SECRETS: list[dict[str, object]] = [
    # by the last words of a name, in any spelling, with a value of any type, and in what is below
    {"data": {"hf_token": "x"}}, {"model": {"api_key": "x"}}, {"a": [{"password": "x"}]}, {"clientSecret": "abc"},
    {"OPENAI_API_KEY": 123456}, {"wandb-key": 5}, {"session_token": 1.5}, {"api_keys": ["a", "b"]}, {"dsn": "x"},
    {"credentials": {"user": "me", "phrase": "a1b2c3"}}, {"secret": {"pin": 4711}}, {"my_token": "swordfish"},
    {"private_key": {"pem": "abc1def"}}, {"connection_string": "x"}, {"bearer": "x"}, {"db_pass": "hunter"},
    {"enc_key": "Zm9vYmFy12"}, {"auth": "user:hunter2"}, {"password": "before ${oc.env:A} after1"},
    # by their look, in any text
    {"x": KEY}, {"x": "hf_" + "A1b2" * 8}, {"x": "sk-" + "abcd1" * 6}, {"x": "AKIAIOSFODNN7EXAMPLE"},
    {"x": "github_pat_" + "a1B2" * 6}, {"x": "xoxb-1234-5678-abcd"}, {"x": "glpat-" + "a1B2" * 5},
    {"x": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-123_x"}, {"x": "Authorization: Basic dXNlcjpwYXNz"},
    {"x": "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"},
    {"x": "s3://user:word@host/bucket"}, {"x": "root:hunter2@db"}, {"x": "https://host/y?a=1&token=abc12345"},
    {"x": "https://a.blob.core.windows.net/c?sv=2020&sig=abc%2B123"}, {"x": "https://tok3nabcdefghijklmnop@host/x"},
    {"x": "AccountName=x;AccountKey=abcd1234==;EndpointSuffix=y"}, {"x": '{"api_key": "abc"}'},
    {"args": ["--password=hunter2"]}, {"x": "https://hooks.slack.com/services/T000/B000/XXXXXXXXXXXX"},
    {"x": "s3://key:se/cret1@bucket/x"}, {"x": "curl -u me:tiger https://host"}, {"x": "PGPASSWORD=tiger psql"},
    {"headers": ["X-Api-Key: abcdef"]}, {"x": "https://discord.com/api/webhooks/123456/abcdefgh-ijk"},
    # by what stands beside it
    {"login": {"user": "me", "pass": "tiger"}}, {"db": {"pw": "tiger"}}, {"hub": {"token": "abc"}},
    {"args": ["--api-key", "abc"]}, {"auth": ["me", "tiger"]}, {"use_auth_token": "tiger"},
    # as a default of a variable
    {"x": "${oc.env:HF_TOKEN,hunter2}"}, {"password": "${oc.env:A,swordfish}"},
]  # fmt: skip
NO_SECRETS: list[dict[str, object]] = [
    {"tokenizer": "gpt2"}, {"max_tokens": 4096}, {"token_file": "/run/token"}, {"key_dim": 64}, {"num_keys": 8},
    {"primary_key": "id"}, {"author": "me"}, {"sort_key": "a1"}, {"random_key": 42}, {"monkey": "x1y2"},
    {"revision": "0" * 40}, {"commit": KEY}, {"sha256": "ab12" * 16}, {"pad_token": "<pad>"}, {"image_key": "img1"},
    {"use_auth_token": True}, {"token": 7}, {"key": 3}, {"token": ""}, {"api_key": None}, {"api_key": "EMPTY"},
    {"dir": f"runs/{KEY}"}, {"path": "https://host/data"}, {"x": "ssh://git@github.com/x"}, {"token_id": 50256},
    {"x": "postgresql://user@host/db"}, {"x": "hf://datasets/a/b@main/x"}, {"x": "python:3.11@sha256:abc"},
    {"stop_tokens": ["</s>"]}, {"special_tokens": {"eos": "</s>"}}, {"pwd": "/home/x"}, {"temporal_key": "time"},
    {"keys": ["a1", "b2"]}, {"auth": {"type": "none"}}, {"secret_santa": "x1"}, {"forward_pass": "x1"},
    {"x": "disk-array-1234567890abcdef"}, {"x": "top:5@k"}, {"notes": "per token: loss of the key: value pairs"},
    {"x": "(?P<token>[a-z]+)=1"}, {"x": f"models--x/snapshots/{KEY}"}, {"x": "hf_dataset_loader_for_images"},
    {"tags": ["basic training", "bearer of bad news"]}, {"x": "me@host.org"}, {"keyboard": "x1"}, {"compass": "a1"},
    {"hf_token": "${oc.env:HF_TOKEN}"}, {"header": "Bearer ${oc.env:HF_TOKEN}"}, {"api_key": "${oc.env:X,null}"},
    {"url": "https://me:${oc.env:TOKEN}@host"}, {"name": KEY}, {"tags": [KEY]}, {"npz_key": "arr_0"},
    {"ssh_key": "~/.ssh/id_rsa"}, {"credentials": "/home/me/creds.json"}, {"url": "https://host/x?key=image"},
    {"columns": {"key": "int64", "token": "string"}}, {"label2id": {"password": 0, "api_key": 2}},
    {"notes": "Basic ResNet-50 baseline"}, {"x": "sk-learn-digits-2024-01-long-name"}, {"lr": "mean:0.1234@bfloat16"},
    {"x": "docker://ubuntu:22.04@sha256:abc"}, {"user": {"key": "image"}}, {"key": "__key__"},
    {"x": "s3://key:${oc.env:A}@b/x"}, {"path": "https://host:8080/@user/x"},
]  # fmt: skip


@pytest.mark.bad_input("a secret in the config")
def test_what_looks_like_a_secret_is_named_and_not_repeated():
    missed = [config for config in SECRETS if len(credential_problems(config)) == 0]
    assert missed == []
    told = "".join(problem for config in SECRETS for problem in credential_problems(config))
    assert [one for one in (KEY, "word@", "hunter", "swordfish", "4711", "A1b2") if one in told] == []


def test_what_does_not_is_left_alone():
    assert [config for config in NO_SECRETS if credential_problems(config)] == []


def test_every_value_that_the_project_itself_brings_is_left_alone():
    files = sorted(Path(conf_dir()).rglob("*.yaml"))
    loaded = {path: OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in files}
    assert len(files) > 50
    assert {path.name: found for path, plain in loaded.items() if (found := credential_problems(plain))} == {}


@pytest.mark.bad_input("a secret in the config")
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "+model.api_key=hunter2"],
        ["train", "++model.kwargs={api_key: hunter2}"],
        ["train", "~model.token=hunter2"],
        ["train", "model.kwargs=[{a: 1}, {hub_token: hunter2}]"],
        ["train", "--multirun", "+model.api_key=hunter2,hunter3"],
        ["train", "model.api_key@x=hunter2"],
        ["train", "hydra.job.env_set.WANDB_API_KEY=hunter2"],
        ["train", "seed=https://me:hunter2@host"],
        ["plan", "--cfg", "job", "+x.password=hunter2"],
        ["train", "--help", "+x.password=hunter2"],
        ["report", "--token=hunter2"],
        ["report", "--api-key", "hunter2"],
        ["api_key=hunter2"],
        ["train", "'+model.password=hunter2"],  # no syntax
    ],
)
def test_a_secret_on_a_command_line_is_refused_before_anything_repeats_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "looks like a secret" in printed.err
    assert "hunter2" not in printed.out + printed.err


def test_a_secret_in_a_file_is_shown_by_no_flag_and_written_by_no_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_a_folder: None
):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nmodel:\n  kwargs:\n    password: hunter2\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    given = [f"--config-dir={tmp_path / 'own'}", "experiment=mine", "+model.kwargs={}"]
    for flags in (["--cfg", "job"], ["--multirun", "seed=1,2", "run.root=sweep"]):
        assert main(["train", *given, *flags]) == 2
        printed = capsys.readouterr()
        assert "model.kwargs.password: looks like a secret" in printed.err
        assert "hunter2" not in printed.out + printed.err
    assert not (tmp_path / "sweep").exists()


def test_no_folder_and_no_run_is_named_by_a_secret(
    capsys: pytest.CaptureFixture[str], in_a_folder: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hunter2-7f3a")
    named = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    for arguments in (
        ["--multirun", named, "+model.token='${oc.env:HF_TOKEN}'", "seed=1,2"],
        ["hydra.run.dir='runs/${oc.env:HF_TOKEN}'"],
        ["run.name='${oc.env:HF_TOKEN}'"],
        ["logger.wandb.tags=[a,'${oc.env:HF_TOKEN}']"],
    ):
        assert main(["train", *arguments]) == 2
        printed = capsys.readouterr()
        assert "looks like a secret" in printed.err
        assert "hunter2" not in printed.out + printed.err
    assert list(Path().iterdir()) == []


def test_what_a_variable_holds_is_told_by_its_name_in_every_spelling(monkeypatch: pytest.MonkeyPatch):
    value = 'p"w\\d ä/7'
    monkeypatch.setenv("LB_PASSWORD", value)
    monkeypatch.setenv("LB_PLACE", "somewhere-else")
    hide_variables(["LB_PLACE"])
    text = f"{value} | {json.dumps({'a': value})} | {value!r} | {quote(value, safe='')} | somewhere-else | step 7 of 70"
    told = redacted(text)
    hidden = "${oc.env:LB_PASSWORD}"
    assert told == (f'{hidden} | {{"a": "{hidden}"}} | \'{hidden}\' | {hidden} | ${{oc.env:LB_PLACE}} | step 7 of 70')


def test_numbers_and_places_from_the_environment_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LB_NUMBER", "1234567")
    monkeypatch.setenv("LB_SCRATCH", str(tmp_path))
    hide_variables(["LB_NUMBER", "LB_SCRATCH"])
    assert redacted(f"{tmp_path}/runs, 1234567 samples") == f"{tmp_path}/runs, 1234567 samples"


def test_what_we_print_anyway_is_not_taken_for_a_secret(monkeypatch: pytest.MonkeyPatch):
    """In its place the name of the variable would tell what it holds; numbers and nothing are no secrets."""
    line = "linear, step 100000, train loss 0.8104, validation/loss, /root/runs, api_key=EMPTY"
    for word in ("linear", "train", "loss", "validation", "root", "EMPTY", "0.8104", "100000", "1", "", "cpu"):
        monkeypatch.setenv("DB_PASSWORD", word)
        assert redacted(line) == line, word
    monkeypatch.setenv("DB_PASSWORD", "swordfish")
    assert redacted("linear swordfish") == "linear ${oc.env:DB_PASSWORD}", "a changed environment is seen"


def test_a_screen_full_of_signs_is_searched_in_time_that_grows_with_it(monkeypatch: pytest.MonkeyPatch):
    """Each pattern is given up soon: 200 kB of what several of them begin with would take minutes otherwise."""
    for signs in ("://", "a.b-", "a:", "&a", "a@", "://a:", "-u a:", "authorization: ", "hf_a", "sk-"):
        text = signs * (200_000 // len(signs))
        assert len(redacted(text)) > 0

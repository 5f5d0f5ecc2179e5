"""Names of before: whoever writes one is told the new one, and what was written with them before is still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from largebatch.__main__ import main
from largebatch.records.renamed import renamed_in_config, renamed_on_command_line, with_new_names
from largebatch.records.report.run_files import read_settings
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError, parse_config
from tests.unit.composing import compose_run

pytestmark = [pytest.mark.quick]
OF_THE_COMMAND_LINE = {
    "observers.ranks.compare_every=5": "Write observers.replicas.every=5.",
    "observers.ranks.slow_ratio=null": "Write observers.stragglers.ratio=null.",
    "observers.ranks.recompute_every=5,50": "Write observers.recompute.every=5,50.",
    "+observers.ranks={}": "observers.replicas.every, observers.stragglers.ratio and observers.recompute.every",
    "batch_norm=ghost": "Write batch_norm=per_micro_batch.",
    "batch_norm=ghost,exact": "Write batch_norm=per_micro_batch,exact.",
    "launcher.join_timeout_s=5": "Write launcher.rendezvous_timeout_s=5.",
    "+launcher.timeout_s=5": "Write +launcher.collective_timeout_s=5.",
    "~launcher.timeout_s": "Write ~launcher.collective_timeout_s.",
    "chapter.seeds=2": "Write textbook.seeds=2.",
    "experiment=chapter/lars,chapter/warmup": "Write experiment=textbook/lars,textbook/warmup.",
    "+observers.variance.every=5": "`largebatch measure variance`",
    "hydra.sweep.subdir=t${launcher.timeout_s}": "Write ${launcher.collective_timeout_s}.",
}
OF_A_CONFIG = {
    "observers: {ranks: {slow_ratio: 2}}": "Write observers.stragglers.ratio=2.",
    "batch_norm: ghost": "Write batch_norm=per_micro_batch.",
    "launcher: {timeout_s: 5}": "Write launcher.collective_timeout_s=5.",
    "seed: ${launcher.join_timeout_s}": "Write ${launcher.rendezvous_timeout_s}.",
    "seed: '${oc.select:launcher.timeout_s,5}'": "Write ${launcher.collective_timeout_s}.",
    "seed: ${observers.variance.window}": "`largebatch measure variance`",
    "chapter: {seeds: 2}": "Write textbook.seeds=2.",
    "observers: {variance: {every: 5}}": "`largebatch measure variance`",
}
METRICS = {
    "ranks/slowest_rank": "stragglers/slowest_rank",
    "ranks/slowest_ratio": "stragglers/ratio",
    "communication/skew_s": "communication/straggler_wait_s",
    "noise_scale/value": "noise_scale/b_simple",
    "noise_scale/low": "noise_scale/ci_low",
    "noise_scale/high": "noise_scale/ci_high",
    "noise_scale/head/value": "noise_scale/head/b_simple",
    "noise_scale/value/low": "noise_scale/value/ci_low",
}


@pytest.mark.parametrize(("argument", "remedy"), OF_THE_COMMAND_LINE.items())
def test_an_old_name_on_the_command_line_is_refused_before_anything_else(argument: str, remedy: str):
    (problem,) = renamed_on_command_line(["seed=1", argument, "batch.total=64"])
    assert problem.startswith(argument)
    assert problem.endswith(f"{remedy}") or remedy in problem


@pytest.mark.parametrize("argument", ["experiment=my-chapter/lars", "experiment=chapter/mine", "data.name=ghost"])
def test_a_name_of_ones_own_is_no_old_one(argument: str):
    assert renamed_on_command_line([argument]) == []


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("arguments", [["batch_norm=ghost"], ["--multirun", "batch_norm=ghost,exact"]])
def test_a_verb_says_the_new_name(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "batch.totl=7", *arguments]) == 2
    said = capsys.readouterr().err
    assert "is called per_micro_batch" in said
    assert "batch.totl" not in said


@pytest.mark.parametrize(("old", "new"), [("chapter", "textbook"), ("ledger", "diff")])
def test_an_old_verb_is_refused(old: str, new: str, capsys: pytest.CaptureFixture[str]):
    assert main([old, "a", "b"]) == 2
    assert capsys.readouterr().err == f"largebatch: {old!r} is called {new} now. Write largebatch {new}.\n"


@pytest.mark.usefixtures("in_a_folder")
def test_an_old_name_in_a_file_of_ones_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its values, its list of defaults, and its sweep."""
    (tmp_path / "experiment").mkdir()
    for text, remedy in {
        "launcher: {join_timeout_s: 5}": "Write launcher.rendezvous_timeout_s=5.",
        "defaults: [/experiment/chapter/lars]": "Write experiment=textbook/lars.",
        "hydra: {sweeper: {params: {observers.ranks.slow_ratio: '2,3'}}}": "Write observers.stragglers.ratio.",
        "hydra: {sweeper: {params: {batch_norm: 'exact,ghost'}}}": "Write batch_norm=exact,per_micro_batch.",
    }.items():
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
        sweep = ["--multirun"] if "sweeper" in text else []
        assert main(["plan", "--config-dir", str(tmp_path), "experiment=mine", *sweep]) == 2
        said = capsys.readouterr()
        assert remedy in said.err
        assert "global batch" not in said.out  # no job of the sweep has begun


@pytest.mark.usefixtures("in_a_folder")
def test_a_config_that_builds_on_an_old_one_is_told_its_new_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.yaml").write_text("defaults: [chapter, _self_]\n", encoding="utf-8")
    for name in ("mine", "chapter"):
        assert main(["plan", "--config-dir", str(tmp_path), "--config-name", name]) == 2
        assert capsys.readouterr().err == (
            "largebatch: the config chapter.yaml is called textbook.yaml now. Write textbook.\n"
        )


@pytest.mark.parametrize(("text", "remedy"), OF_A_CONFIG.items())
def test_an_old_name_in_a_file_is_refused(text: str, remedy: str):
    (problem,) = renamed_in_config(OmegaConf.to_container(OmegaConf.create(text)))
    assert remedy in problem


def test_an_old_value_from_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NORM", "ghost")
    with pytest.raises(ConfigError, match=r"Write batch_norm=per_micro_batch\."):
        parse_config(compose_run("batch_norm='${oc.env:NORM}'"))


def test_a_config_in_new_names_stays_as_it_is():
    config = OmegaConf.to_container(compose_run("optimizer=lars"), resolve=False)
    assert renamed_in_config(config) == []
    assert with_new_names(config) == config


def test_the_config_of_a_run_of_before_is_read_in_new_names(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("batch_norm: ghost\nloss: {_target_: largebatch.coupled_losses.InfoNCE}\n")
    assert read_settings(tmp_path) == {"batch_norm": "per_micro_batch", "loss._target_": "largebatch.losses.InfoNCE"}


def test_metrics_of_a_run_of_before_are_read_by_their_new_names(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(dict.fromkeys(METRICS, 1.0) | {"step": 1, "train/loss": 2.0}))
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        dict.fromkeys(METRICS.values(), 1.0) | {"step": 1, "train/loss": 2.0}
    ]


def test_an_old_verb_alone_says_what_the_new_one_can_be_asked_for(capsys: pytest.CaptureFixture[str]):
    assert main(["chapter"]) == 2
    told = capsys.readouterr()
    assert "'chapter' is called textbook now" in told.err
    assert "textbook gd_variants" in told.out + told.err

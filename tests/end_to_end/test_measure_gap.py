"""`largebatch measure gap`: from a trained run to a table, a record and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.experiments.measure.gap import ghost_size
from largebatch.records.trackers import read_metrics
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

RUN = [
    "model=convnet", "model.width=4", "data.label_noise=0.3", "data.augment.crop_padding=1", "loss.label_smoothing=0.1",
    "data.limit=600",
]  # fmt: skip
QUICK = ["logger=none", "observers.progress=false", "schedule.warmup=0samples"]
PARTS = ["label smoothing", "augmentation", "train mode", "stale statistics", "label noise", "generalization"]


@pytest.fixture(autouse=True)
def in_a_wide_terminal(in_a_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")


def gap(*overrides: str) -> dict[str, Any]:
    assert main(["measure", "gap", "measure.gap.resamples=200", "run.dir=out", *overrides]) == 0
    record = json.loads(Path("out/gap.json").read_text())
    return record | record["numbers"]


def test_of_a_run_the_parts_add_up_and_the_generalization_gap_is_that_of_its_last_evaluation(capsys):
    assert main(["train", *RUN, *QUICK, "length=2ep", "run.dir=trained"]) == 0
    (*_, evaluated) = [row for row in read_metrics("trained/metrics.jsonl") if "gap/loss" in row]
    capsys.readouterr()
    found = gap(*RUN, "measure.checkpoint=trained", "measure.samples=360")
    said = capsys.readouterr().out
    assert "(step 37): 360 training, 360 validation samples, fp32" in said
    assert [part["name"] for part in found["parts"]] == PARTS
    assert all(part["loss"] is not None for part in found["parts"])
    assert sum(part["loss"]["value"] for part in found["parts"]) == pytest.approx(found["naive"]["loss"]["value"])
    assert found["naive"]["loss"]["value"] == pytest.approx(found["val_loss"] - found["train_loss"])
    seen = found["generalization_gap"]
    assert seen["loss"]["value"] == pytest.approx(evaluated["gap/loss"], rel=1e-4)
    assert seen["accuracy"]["value"] == pytest.approx(evaluated["gap/accuracy"], abs=1e-9)
    width = seen["loss"]["high"] - seen["loss"]["low"]
    assert width == pytest.approx(2 * 1.96 * evaluated["gap/loss_stderr"], rel=0.25)  # 200 resamples: 10 %
    assert found["ghost"] == 32
    assert "dropout and batch norm over micro-batches of 32" in said
    assert Path("out/gap_parts.png").stat().st_size > 10_000
    assert "out/gap_parts.png\n" in said


def test_what_is_not_there_is_said_to_be_none_and_not_an_interval(capsys):
    found = gap("model=mlp", "model.hidden=[4]", "measure.samples=50", "measure.gap.ghost=8")
    assert found["ghost"] == 8
    assert [part["name"] for part in found["parts"]] == [name for name in PARTS if name != "label noise"]
    assert [part["loss"] is None for part in found["parts"]] == [True] * 4 + [False]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" + ")]
    assert [line.split().count("none") for line in lines] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch.total=64"], 64),
        (["batch.total=600"], 256),  # batch.max_micro
        (["batch.total=64", "batch.micro=16"], 16),
        (["batch.total=64", "batch.micro=16", "batch_norm=exact"], 64),
    ],
)
def test_the_ghost_size_is_that_of_training_and_the_whole_batch_for_exact_batch_norm(overrides, expected):
    assert ghost_size(prepare(compose_run("model=convnet", "model.width=2", *overrides), {})) == expected


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=paired_views", "model=two_views", "loss=info_nce"], "InfoNCE: it compares the samples of a batch"),
        (["measure.samples=1"], "1 training and 360 validation samples: the spread of a mean needs 2 of both"),
        (["measure.samples=9999"], "measure.samples=9999: the training set has 1437."),
        (["measure.gap.resamples=99"], "measure.gap.resamples=99: must be at least 100."),
        (["measure.gap.draws=0"], "measure.gap.draws=0: must be at least 1."),
    ],
)
def test_wrong_input_is_one_report_and_exit_code_two(overrides, said, capsys):
    assert main(["measure", "gap", "measure.samples=64", "run.dir=out", *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()

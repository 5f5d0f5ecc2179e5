"""`largebatch find-lr`: from the command line to a suggestion, a record and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.__main__ import main
from largebatch.data import linear_regression
from largebatch.diagnostics.closed_forms import LeastSquares

# As dense as by default, over the five decades around the limits of the closed forms.
PLAIN = ["optimizer.momentum=0.0", "precision=fp64", "run.dir=out", "find_lr.min=0.001", "find_lr.steps=72"]
BOWL = ["data=noisy_quadratic", *PLAIN]
REGRESSION = ["data=linear_regression", *PLAIN]


pytestmark = pytest.mark.usefixtures("in_a_folder")


def find_lr(*overrides: str, code: int = 0) -> dict[str, Any]:
    assert main(["find-lr", *overrides]) == code
    record = json.loads(Path("out/find_lr.json").read_text())
    return record | record["numbers"]


def test_on_the_noisy_quadratic_a_stable_rate_is_suggested_told_written_and_drawn(capsys):
    record = find_lr(*BOWL, "batch.total=256", "find_lr.seeds=3")
    said = capsys.readouterr().out
    suggestion = record["suggestion"]
    assert f"The suggested learning rate for batch 256 is {suggestion['lr']:.3g} (95 %: " in said
    assert suggestion["low"] < suggestion["lr"] < suggestion["high"]
    assert suggestion["lr"] < 2 / 1.0, "the largest stable rate"
    assert (record["kind"], record["batch_size"], list(record["loss"])) == ("find_lr", 256, ["0", "1", "2"])
    assert max(map(len, record["loss"].values())) == len(record["lr"])
    assert record["loss"]["0"][:20] != record["loss"]["1"][:20]
    assert [figure["name"] for figure in record["figures"]] == ["find_lr"]
    assert Path("out/find_lr.png").stat().st_size > 5000


def test_a_map_of_batch_sizes_tells_stable_rates_and_how_they_scale(capsys):
    data = linear_regression(1000, 10, "train", noise=0.1)
    largest = np.linalg.eigvalsh(LeastSquares(data.inputs, data.targets).hessian).max()
    record = find_lr(*REGRESSION, "find_lr.batch_sizes=[250,50,1000]", "find_lr.seeds=2")
    assert [one["batch_size"] for one in record["map"]] == [50, 250, 1000]
    for one in record["map"]:
        assert one["suggestion"]["lr"] < 2 / largest, "the largest stable rate"
    assert record["batch_size"] == 1000
    exponent = record["scaling_exponent"]
    said = capsys.readouterr().out
    assert f"grows with the batch to the power {exponent['value']:.3g} (95 %: {exponent['low']:.3g} to" in said
    surface = record["figures"][1]
    assert (surface["type"], surface["rows"]) == ("surface", [50, 250, 1000])
    assert surface["trails"][0]["y"] == [one["batch_size"] for one in record["map"] if one["suggestion"]]
    assert Path("out/lr_map.png").stat().st_size > 5000


def test_one_seed_has_a_suggestion_without_an_interval(capsys):
    record = find_lr("data=digits", "model=linear", "optimizer=adamw", "run.dir=out", "find_lr.seeds=1")
    assert 1e-4 < record["suggestion"]["lr"] < 1.0
    assert record["suggestion"]["low"] is None
    assert "(fewer than 3 seeds: no interval)" in capsys.readouterr().out


def test_a_range_that_is_too_narrow_has_no_suggestion_and_exit_code_one(capsys):
    record = find_lr("data=digits", "model=linear", "run.dir=out", "find_lr.max=0.001", "find_lr.seeds=2", code=1)
    assert record["suggestion"] is None
    assert "upper end of the range, 0.001: the range is too narrow. Raise find_lr.max." in record["reason"]
    assert (
        "There is no suggestion for batch 32: 2 of 2 seeds show none: the loss still falls" in capsys.readouterr().out
    )


def test_a_checkpoint_is_where_the_tests_start_and_seeds_share_its_weights():
    quiet = ["logger=none", "observers.progress=false", "schedule.warmup=0samples"]
    # Without noise and with the whole set, all that a seed could change is the weights.
    whole = ["data=linear_regression", "batch.total=full", "precision=fp64"]
    assert main(["train", *whole, *quiet, "length=3steps", "run.dir=trained"]) == 0
    (last,) = [json.loads(line) for line in Path("trained/metrics.jsonl").read_text().splitlines()][-1:]
    record = find_lr(*whole, "run.dir=out", "find_lr.checkpoint=trained", "find_lr.seeds=2")
    first, second = (losses[0] for losses in record["loss"].values())
    assert first == pytest.approx(second, rel=1e-12)
    assert first == pytest.approx(last["eval/train_loss"], rel=1e-6)
    assert "(step 3)" in record["weights"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["find_lr.min=1", "find_lr.max=0.1"], "find_lr: min=1, max=0.1: rates grow from min to max."),
        (
            ["find_lr.steps=20"],
            "find_lr: steps=20: smoothing=0.9 spans 10 steps, and a curve needs 3",
        ),
        (["find_lr.smoothing=1.0"], "find_lr.smoothing=1.0: must be below 1"),
        (["find_lr.seeds=0"], "find_lr.seeds=0: must be at least 1."),
        (["find_lr.batch_sizes=[8,5000]"], "find_lr.batch_sizes=[8, 5000]: the training set has 1000 samples."),
        (["find_lr.batch_sizes=[8,8]"], "find_lr.batch_sizes=[8, 8]: a size is listed twice."),
        (["batch.ramp.milestones=[10ep]", "batch.ramp.totals=[64]"], "batch.ramp: a range test has one batch size."),
        (["find_lr.checkpoint=nowhere"], "find_lr.checkpoint="),
    ],
)
def test_wrong_input_is_one_report_and_exit_code_two(overrides, said, capsys):
    assert main(["find-lr", *REGRESSION, *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()

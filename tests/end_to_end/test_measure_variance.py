"""`largebatch measure variance`: from the command line to numbers and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.__main__ import main
from largebatch.data import linear_regression
from largebatch.diagnostics.closed_forms import LeastSquares
from largebatch.records.checkpoint import load_checkpoint

REGRESSION = ["data=linear_regression", "measure.precision=fp64", "measure.variance.replications=2", "run.dir=out"]
TEXTBOOK = [*REGRESSION, "measure.samples=null", "measure.variance.batch_sizes=[1,10,100]"]


pytestmark = pytest.mark.usefixtures("in_a_folder")


def variance(*overrides: str) -> dict[str, Any]:
    assert main(["measure", "variance", *overrides]) == 0
    record = json.loads(Path("out/variance.json").read_text())
    return record | record["numbers"]


def test_the_textbook_experiment_is_a_table_a_verdict_a_file_and_a_picture(capsys):
    quiet = ["logger=none", "observers.progress=false", "schedule.warmup=0samples"]
    assert main(["train", "experiment=linear_regression", *quiet, "length=3steps", "run.dir=trained"]) == 0
    capsys.readouterr()
    record = variance(*TEXTBOOK, "measure.checkpoint=trained")
    said = capsys.readouterr().out
    words = " ".join(said.split())
    assert words.startswith("gradient variance of ")
    assert "(step 3), on 1000 training samples in fp64 what" in words
    slope = record["with_replacement"]["slope"]
    low, high = slope["interval"]
    assert f"slope {slope['value']:.3f} (95 %: {low:.3f} to {high:.3f})" in words
    for name, drawn in (("with_replacement", "with replacement"), ("without_replacement", "without")):
        points = record[name]["points"]
        assert [point["batch_size"] for point in points] == [1, 10, 100]
        for point in points:
            assert f"variance, B={point['batch_size']} {drawn} {point['variance']:.5g} " in words
            assert point["standard_deviation"] == point["variance"] ** 0.5
    (path,) = Path("trained/checkpoints").glob("step_*")
    model = load_checkpoint(path).tensors["model"]
    weights = torch.cat([model["head.weight"].reshape(-1), model["head.bias"]]).double().numpy()
    data = linear_regression(1000, 10, "train", noise=0.1)
    noise = LeastSquares(data.inputs, data.targets).gradient_noise(weights)
    assert record["moments"]["noise_scale"] == pytest.approx(noise.simple_noise_scale, rel=1e-9)
    assert record["noise"]["covariance_trace"] == pytest.approx(noise.covariance_trace, rel=1e-9)
    assert f"{noise.simple_noise_scale:.4g} samples" in said
    for name in ("variance.json", "variance.png"):
        assert Path("out", name).stat().st_size > 1000
        assert f"out/{name}\n" in said


def test_by_default_sizes_double_and_a_part_of_the_set_gives_intervals(capsys):
    record = variance(*REGRESSION, "measure.samples=200")
    assert [point["batch_size"] for point in record["without_replacement"]["points"]] == [1, 2, 4, 8, 16, 32, 64]
    moments = record["moments"]
    assert (moments["num_measured"], moments["num_samples"]) == (200, 1000)
    low, high = moments["interval"]
    assert low < moments["noise_scale"] < high
    assert f" {low:.4g} to {high:.4g} " in capsys.readouterr().out
    assert record["settings"]["variance"] == {"batch_sizes": None, "replications": 2}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["measure.variance.batch_sizes=[1,10,25]"], "measure.variance.batch_sizes=[1, 10, 25]: a batch of 25 is not"),
        (["measure.variance.batch_sizes=[1,2,2000]"], "2000 samples cannot be drawn without replacement from 512."),
        (["measure.variance.batch_sizes=[512]"], "only 0 below the 512 samples. A slope needs 2 or more, and"),
        (["measure.variance.batch_sizes=[0,1]"], "measure.variance.batch_sizes.0=0: must be at least 1."),
        (["measure.samples=1"], "measure.variance.batch_sizes=[]: only 0 below the 1 samples."),
        (["measure.variance.replications=1"], "measure.variance.replications=1: must be at least 2."),
        (["measure.samples=9999"], "measure.samples=9999: the training set has 1000. Use 1000 or fewer, or null"),
    ],
)
def test_wrong_input_is_one_report_and_exit_code_two(overrides, said, capsys):
    assert main(["measure", "variance", *REGRESSION, *overrides]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_loss_that_compares_samples_is_refused(capsys):
    pairs = ["data=paired_views", "model=two_views", "loss=info_nce", "measure.samples=64"]
    assert main(["measure", "variance", *pairs]) == 2
    assert (
        "InfoNCE: it compares the samples of a batch, so that none has a loss of its own. Use a loss that is"
        in capsys.readouterr().err
    )

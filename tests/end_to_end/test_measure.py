"""`largebatch measure`: from the command line to numbers and pictures."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.cli.measure import MEASURES
from largebatch.records import durable_files

MODEL = ["model=mlp", "model.hidden=[8]"]
QUICK = ["logger=none", "observers.progress=false", "schedule.warmup=0samples"]
SMALL = [
    *MODEL, "measure.samples=64", "measure.sharpness.m=16", "measure.sharpness.trace_samples=4",
    "measure.sharpness.line_points=3", "measure.sharpness.plane_points=3", "run.dir=out",
]  # fmt: skip
NO_SLICES = ["measure.sharpness.line_points=0", "measure.sharpness.plane_points=0"]
BARE = [*NO_SLICES, "measure.sharpness.box_iterations=0"]


pytestmark = pytest.mark.usefixtures("in_a_folder")


def sharpness(*overrides: str) -> dict[str, Any]:
    assert main(["measure", "sharpness", *SMALL, *overrides]) == 0
    record = json.loads(Path("out/sharpness.json").read_text())
    return record | record["numbers"]


def test_the_initial_weights_are_measured_in_a_table_a_file_and_two_pictures(capsys):
    record = sharpness()
    said = capsys.readouterr().out
    assert "sharpness of the initial weights, on 64 training samples in fp32" in said
    assert (record["weights"], record["checkpoint"], record["step"]) == ("the initial weights", None, 0)
    for what, value in (
        ("lambda_max", record["lambda_max"]["value"]),
        ("trace", record["trace"]["value"]),
        ("box", record["box"]["value"]),
        ("16-sharpness", record["m_sharpness"]["value"]),
    ):
        (line,) = [line for line in said.splitlines() if line.startswith(f" {what} ")]
        assert f" {value:.6g} " in line
    assert f"residual {record['lambda_max']['residual']:.1e}" in said
    for source in ("Cohen et al. 2021", "Hutchinson 1990", "Keskar et al. 2017", "Foret et al. 2021"):
        assert source in said
    assert record["slices"]["line"][1] == pytest.approx(record["loss"])
    assert record["settings"]["sharpness"]["m"] == 16
    for name in ("sharpness.json", "slice_1d.png", "slice_2d.png"):
        assert Path("out", name).stat().st_size > 1000
        assert f"out/{name}\n" in said


def test_a_run_and_its_checkpoint_have_the_same_sharpness_and_other_than_the_start(capsys):
    assert main(["train", *MODEL, *QUICK, "length=20steps", "run.dir=trained"]) == 0
    trained = sharpness(*BARE, "measure.checkpoint=trained")
    assert trained["step"] == 20
    assert trained["weights"] == "trained/checkpoints/step_00000020 (step 20)"  # from here on, not from the root
    assert Path(trained["checkpoint"]) == Path(trained["weights"].removesuffix(" (step 20)")).resolve()
    (path,) = Path("trained/checkpoints").glob("step_*")
    one = sharpness(*BARE, f"measure.checkpoint={path}")
    assert one["lambda_max"] == trained["lambda_max"]
    assert one["loss"] == trained["loss"] < sharpness(*BARE)["loss"]


def test_fp32_agrees_with_fp64_to_its_precision():
    single, double = sharpness(*NO_SLICES), sharpness(*NO_SLICES, "measure.precision=fp64")
    assert double["settings"]["precision"] == "fp64"
    assert single["settings"]["precision"] == "fp32"
    for name in ("lambda_max", "trace", "m_sharpness"):
        assert single[name]["value"] == pytest.approx(double[name]["value"], rel=1e-4)
    assert single["box"]["value"] == pytest.approx(double["box"]["value"], rel=1e-2)


def test_a_precision_without_effect_on_the_timing_of_steps_is_refused(capsys):
    assert main(["measure", "communication", "measure.precision=fp64", "logger=none"]) == 2
    assert "measure.precision=fp64: has no effect on `measure communication`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["measure.sharpness.m=65"], "64 samples make no group of 65. Use m at most 64."),
        (["measure.samples=9999"], "measure.samples=9999: the training set has 1437. Use 1437 or fewer, or null"),
        (["measure.sharpness.rho=0"], "measure.sharpness.rho=0: must be above 0."),
        (["measure.precision=bf16"], "measure.precision=bf16: must be 'fp64' or 'fp32'."),
        (["measure.sharpness.trace_samples=1"], "measure.sharpness.trace_samples=1: must be at least 2."),
        (["measure.checkpoint=nowhere"], "nowhere: there is no such folder. Name the folder of a checkpoint"),
        (["measure.checkpoint=auto"], "auto: there is no such folder."),
    ],
)
def test_wrong_input_is_one_report_and_exit_code_two(overrides, said, capsys):
    assert main(["measure", "sharpness", *SMALL, *overrides]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not Path("out").exists()


def test_a_loss_that_compares_samples_is_refused(capsys):
    pairs = ["data=paired_views", "model=two_views", "loss=info_nce", "measure.samples=64"]
    assert main(["measure", "sharpness", *pairs]) == 2
    assert "InfoNCE: it compares the samples of a batch" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(capsys):
    assert main(["train", *MODEL, *QUICK, "length=1steps", "run.dir=trained"]) == 0
    assert main(["measure", "sharpness", *SMALL, "model.hidden=[9]", "measure.checkpoint=trained"]) == 2
    said = capsys.readouterr().err
    assert "belongs to another model: " in said
    assert re.search(r"is float32 \[8.*\] in the checkpoint and float32 \[9.*\] in the model", said)


def test_all_measures_share_a_page_and_what_does_not_exist_here_is_said(capsys):
    small = ["measure.variance.batch_sizes=[1,8,32]", "measure.variance.replications=3", "measure.gap.resamples=100"]
    assert main(["measure", "all", *SMALL, *small]) == 0
    said = capsys.readouterr().out
    done = [name for name in MEASURES if name != "communication"]  # of a single process
    assert sorted(path.stem for path in Path("out").glob("*.json")) == sorted(done)
    page = Path("out/page.html").read_text()
    assert len(list(Path("out").glob("*.png"))) >= 4
    for name in done:
        record = json.loads(Path(f"out/{name}.json").read_text())
        assert record["seconds"] > 0
        assert f'<section id="{name}">' in page
    assert "left out: communication: " in said
    assert "<td>communication</td>" in page


def test_all_measures_refuse_what_is_wrong_for_any_of_them_in_one_report(capsys):
    wrong = ["measure.sharpness.m=5000", "measure.variance.batch_sizes=[2,3]"]
    assert main(["measure", "all", *SMALL, *wrong]) == 2
    said = capsys.readouterr().err
    assert "2 errors" in said
    assert "measure.sharpness.m=5000: " in said
    assert "batch_sizes=[2, 3]: a batch of 3 is not made of" in said
    assert not Path("out").exists()


def test_without_a_measure_or_with_an_unknown_one_the_list_is_printed(capsys):
    for arguments in ([], ["sharpnes"], ["seed=1"]):
        assert main(["measure", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert all(f"\n  measure {name} " in said.err for name in MEASURES)
        assert (f"{arguments[0]!r} is not one of its subjects" in said.err) if arguments else True
        assert ("Did you mean 'sharpness'?" in said.err) is (arguments == ["sharpnes"])
    assert main(["measure", "--help"]) == 0
    said = capsys.readouterr()
    assert all(f"\n  measure {name} " in said.out for name in MEASURES)
    assert main(["measure", "sharpness", "--help"]) == 0


def test_a_full_disk_costs_the_files_and_not_what_was_measured(monkeypatch, capsys):
    def full(file: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable_files, "write_all", full)
    assert main(["measure", "sharpness", *SMALL, *BARE]) == 1
    said = capsys.readouterr()
    assert " lambda_max " in said.out
    assert said.err.splitlines()[-1] == (
        "largebatch: out/sharpness.json cannot be written: No space left on device. Make room, or choose another place."
    )
    assert "Traceback" not in said.err

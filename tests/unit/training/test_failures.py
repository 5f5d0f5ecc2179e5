"""What fails in a run that passed its dry run is told with step, rank and samples, without a traceback."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.__main__ import main
from largebatch.batch.order import SampleOrder

HERE = "tests.unit.training.test_failures"
COUNT, BATCH, MICRO = 96, 12, 4
STEP = 5  # from 1
SAMPLE = int(SampleOrder(COUNT, 0).ids(BATCH * (STEP - 1) + MICRO, 1)[0])  # the first of its second micro-batch


class Points:
    """Classes of points. One of them is wrong in a way that only shows when it comes."""

    def __init__(self, kind: str, split: str) -> None:
        self.kind = kind if split == "train" else ""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        inputs, label = torch.full((8,), float(index)), index % 4
        if index == SAMPLE:
            if self.kind == "unreadable":
                raise OSError("disk gone")
            wrong = {"label": (inputs, 9), "below": (-inputs - 1, label), "hollow": (inputs * torch.nan, label)}
            inputs, label = wrong.get(self.kind, (inputs, label))
        return inputs, label


class Net(nn.Linear):
    """Refuses points below 0, and in evaluation mode after training as told."""

    def __init__(self, *, evaluates: bool = True) -> None:
        super().__init__(8, 4)
        self.evaluates = evaluates
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if not self.training and not self.evaluates and self.calls > 3 * (STEP - 1):
            raise KeyError("no head")
        if inputs.min() < 0:
            raise RuntimeError("a point\nbelow 0")
        return super().forward(inputs)


def train(folder: Path, *overrides: str) -> int:
    kind = next((one.partition("=")[2] for one in overrides if one.startswith("kind=")), "none")
    return main(
        [
            "train", f"run.dir={folder}", "data=synthetic", "model=linear", "logger=none", "observers.progress=false",
            *(f"~{one}" for one in ("model.in_features", "model.num_outputs")), f"model._target_={HERE}.Net",
            *(f"~data.{name}.{key}" for name in ("train", "validation")
              for key in ("num_samples", "num_classes", "shape", "split")),
            *(f"data.{name}._target_={HERE}.Points" for name in ("train", "validation")),
            f"+data.train.kind={kind}", "+data.validation.kind=none", "+data.train.split=train",
            "+data.validation.split=validation", f"batch.total={BATCH}", f"batch.micro={MICRO}", "length=8steps",
            "schedule.warmup=0ep", *(one for one in overrides if not one.startswith("kind=")),
        ]
    )  # fmt: skip


def said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("largebatch: ")]
    return line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["kind=below"],
            rf" in the micro-batch of the samples {SAMPLE}, \d+, \d+, \d+ \(inputs float32 \[4, 8\], targets int64 "
            r"\[4\] from \d \(sample \d+\) to \d \(sample \d+\)\): RuntimeError: a point \(test_failures.py:\d+",
        ),
        (
            ["kind=label"],
            rf": DataError: Sample {SAMPLE} cannot be loaded: ValueError: the label 9 is none of the 4 classes",
        ),
        (["kind=unreadable"], rf": DataError: Sample {SAMPLE} cannot be loaded: OSError: disk gone"),
    ],
)
def test_the_samples_are_named_and_the_traceback_is_in_a_file(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path / "run", *overrides) == 1
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    (line,) = [line for line in captured.splitlines() if line.startswith("largebatch: ")]
    assert re.match(rf"largebatch: step {STEP} of 8 failed on rank 0{told}", line), line
    kept = tmp_path / "run" / "failure.rank0.txt"
    assert line.endswith(f"The traceback is in {kept}.")
    assert "Traceback (most recent call last)" in kept.read_text()


def test_an_error_of_an_evaluation_names_no_micro_batch_of_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["+model.evaluates=false", f"observers.evaluation.every={STEP}steps"]
    assert train(tmp_path / "run", *overrides) == 1
    line = said(capsys)
    assert line.startswith(f"largebatch: step {STEP} of 8 failed on rank 0: KeyError: 'no head' (test_failures.py:")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["kind=hollow"],
            rf"these of the last samples hold NaN or infinity: {SAMPLE}\. Repair .*data\.on_bad_sample=skip",
        ),
        (["scaling.base_lr=1e38"], "the loss is NaN or infinite: lower the peak rate"),
    ],
)
def test_a_loss_that_is_no_number_is_put_down_to_the_sample_that_is_none(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert train(tmp_path / "run", *overrides) == 1
    assert re.search(told, " ".join(capsys.readouterr().out.split()))

"""The walk-throughs of the README files, typed line by line into an empty folder."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from largebatch.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def walk_through(room: str) -> None:
    """Save each file of the section, and run each of its commands in this process."""
    text = (ROOT / "largebatch" / room / "README.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## Walk-through: ")
    assert section
    for kind, block in BLOCK.findall(section):
        if kind == "python":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command, *arguments = shlex.split(line)
            if command == "python":
                runpy.run_path(arguments[0], run_name="__main__")
            else:
                assert command == "largebatch"
                silent = ["logger.wandb.mode=disabled", "logger.plots=false"] if arguments[0] == "train" else []
                assert main([*arguments, *silent]) == 0, line


def summary(run: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path("runs", run, "summary.json").read_text())
    return found


@pytest.mark.usefixtures("in_a_folder")
def test_vision() -> None:
    walk_through("models")
    assert summary("vision")["eval/val_top5"] > 0.8
    assert summary("vision")["best/eval/ema_val_accuracy"] > 0.5
    assert Path("vision.safetensors").stat().st_size > 50_000
    page = Path("report.html").read_text(encoding="utf-8")
    assert "vision_512" in page


@pytest.mark.usefixtures("in_a_folder")
def test_a_language_model() -> None:
    walk_through("data")
    assert 1 < summary("language")["eval/val_perplexity"] < 50
    assert summary("language")["tokens_seen"] <= 200_000
    assert summary("noise")["status"] == "finished"


@pytest.mark.usefixtures("in_a_folder")
def test_contrastive_learning(capsys: pytest.CaptureFixture[str]) -> None:
    walk_through("losses")
    (found,) = re.findall(r"accuracy on new digits: (0\.\d+)", capsys.readouterr().out)
    assert float(found) > 0.95

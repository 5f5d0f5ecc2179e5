"""The command line: verbs, exit codes, one report for wrong input, and quick help.

Each process costs seconds, so a test asks as much of one as it can; what needs none calls `main`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.cli.process import refusing
from largebatch.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "WANDB_API_KEY")
    environ = {name: value for name, value in os.environ.items() if name not in launcher}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def test_without_a_verb_the_list_is_printed_and_the_exit_code_is_two(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    listing = capsys.readouterr().out
    assert listing.startswith("usage: largebatch VERB [KEY=VALUE ...]\n")
    assert all(f"\n  {verb} " in listing for verb in VERBS)
    for flag in ("-h", "--help"):
        assert main([flag]) == 0
        assert capsys.readouterr().out == listing


def test_a_verb_that_does_not_exist_is_answered_with_the_nearest_or_the_list(capsys: pytest.CaptureFixture[str]):
    assert main(["trian", "seed=1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("largebatch: 'trian' is not a verb. Did you mean 'train'?\n")
    assert "usage:" not in said.err  # 20 lines would scroll the answer away
    assert main(["zzz"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("largebatch: 'zzz' is not a verb.\n")
    assert "usage: largebatch VERB" in said.err


def test_help_before_behind_and_as_a_verb_is_one_page(capsys: pytest.CaptureFixture[str]):
    assert main(["diff", "--help"]) == 0
    page = capsys.readouterr().out
    assert main(["--help", "diff"]) == 0
    assert capsys.readouterr().out == page
    assert main(["help", "diff"]) == 0
    assert capsys.readouterr().out == page


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    name, _, version = capsys.readouterr().out.strip().partition(" ")
    assert name == "largebatch"
    assert version


HELP = """
import sys
from largebatch.__main__ import main
codes = [main(["--help"]), main(["train", "--help"]), main(["plan", "--cfg", "job"])]
heavy = [name for name in ("torch", "accelerate", "wandb", "matplotlib", "sklearn", "pydantic") if name in sys.modules]
print(codes, heavy, file=sys.stderr)
"""


def test_help_and_the_composed_config_are_shown_without_importing_torch(tmp_path: Path):
    done = run("-c", HELP, cwd=tmp_path)
    assert done.stderr.strip().splitlines()[-1] == "[0, 0, 0] []"
    assert "torchrun --standalone --nproc-per-node N -m largebatch train" in done.stdout
    assert "optimizer=lars " in done.stdout
    assert "batch:\n  total: 32\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_the_arithmetic_and_writes_nothing(
    in_a_folder: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = ["data=synthetic", "data.train.num_samples=8192", "model=linear", "length=90ep", "batch.total=8192"]
    overrides += ["scaling.base_lr=0.1", "scaling.base_batch_size=256", "schedule.warmup=5ep", "batch.max_micro=1024"]
    assert main(["plan", "launcher.num_processes=4", *overrides]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    said = " ".join(printed.out.split())
    for fact in (
        "8,192 samples batch.total",
        "ranks 4 each 2048 samples per step",
        "8 of 1024 rank 0: 1024 + 1024; one gradient all-reduce per step",
        "steps 90 737,280 samples // 8,192",
        "peak LR 3.2 linear: base_lr * global_batch_size / base_batch_size with base_lr=0.1",
        "warmup 40,960 samples from 0.1",
        "40,960 samples 3.2",
    ):
        assert fact in said
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_one_report_and_exit_code_two(tmp_path: Path):
    done = run("-m", "largebatch", "train", "batch.total=0", "+foo=1", "seed=x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "largebatch: 3 errors in the configuration:"
    assert sorted(line.split("=")[0] for line in lines[1:]) == ["  - batch.total", "  - foo", "  - seed"]
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_rank_of_a_machine_reports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(refusing, "_HEAD_START_S", 0)
    for local_rank, reports in (("1", 0), ("0", 1)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert main(["train", "seed=x"]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("seed=x")) == ("", reports)
        assert bool(said.err) == bool(reports)


def test_a_sweep_inside_a_launcher_is_refused_with_the_loop_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for flag in ("--multirun", "-m"):
        assert main(["train", flag, "seed=0,1"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("largebatch: --multirun inside a launcher: every rank would run the whole sweep.")
        assert "for value in ...; do torchrun ... -m largebatch train KEY=$value; done" in said


def test_a_sweep_in_a_broken_environment_is_wrong_input_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "two")
    for arguments in (["--multirun", "seed=0,1"], ["model=mlp", "--multirun", "seed=0,1"]):  # wherever the flag stands
        assert main(["train", *arguments]) == 2
        assert capsys.readouterr().err.count("WORLD_SIZE is set but RANK is not: ") == 2


def test_a_reader_that_leaves_early_gets_no_traceback():
    """Of tables, too: rich ends a program whose reader has left. What is short is only seen to be unread at the end."""
    verbs = ("plan", "train --help", "diff --help")
    one = f"{sys.executable} -m largebatch"
    commands = "; ".join(f'{one} {verb} | true; echo "exit ${{PIPESTATUS[0]}}"' for verb in verbs)
    done = subprocess.run(["bash", "-c", commands], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("exit 141\n" * len(verbs), "")


END = """
import atexit, os, sys, threading, time
class Kept:
    def __del__(self):
        os.write(1, b"taken apart ")
kept = Kept()
atexit.register(print, "atexit", end=" ")
seconds = 3600 if os.environ["WORLD_SIZE"] == "2" else 0.2
threading.Thread(target=lambda: (time.sleep(seconds), os.write(1, b"thread "))).start()
sys.argv = ["largebatch", *sys.argv[1:]]
from largebatch.__main__ import run
run()
"""


@pytest.mark.parametrize(("world_size", "expected"), [("1", "thread atexit "), ("2", "atexit ")])
def test_a_process_ends_with_its_code_and_exit_functions_but_leaves_the_interpreter_alone(world_size, expected):
    done = subprocess.run(
        [sys.executable, "-c", END, "nonsense"],
        env=os.environ | {"WORLD_SIZE": world_size},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, expected)
    assert "'nonsense' is not a verb" in done.stderr

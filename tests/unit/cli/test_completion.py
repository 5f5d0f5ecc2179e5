"""Completion by TAB, in the shells themselves: bash and zsh at a terminal, fish by `complete -C`."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.cli.catalogue.completing import PathsError, completions
from largebatch.cli.completion import SCRIPTS

ROOT = Path(__file__).resolve().parents[3]
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """With `largebatch` on PATH, and a folder `runs` with a run in the working folder."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "largebatch"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m largebatch "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for shell, script in SCRIPTS.items():
        (tmp_path / f"completion.{shell}").write_text(script, encoding="utf-8")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "200"}


def shell(environment: dict[str, str], *command: str) -> list[str]:
    done = subprocess.run(
        command, env=environment, cwd=environment["HOME"], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pl", ["plan"]),
        ("measure s", ["sharpness"]),
        ("textbook textbook/", []),
        ("textbook grad", ["gradient_variance"]),
        ("textbook pa", ["page"]),
        ("launch t", ["torchrun"]),
        ("launch s", ["slurm", "show"]),
        ("checkpoint e", ["export"]),
        ("train --multi", ["--multirun"]),
        ("train seed", ["seed="]),
        ("train optimiz", ["optimizer=", "optimizer."]),
        ("train optimizer=l", ["optimizer=lamb", "optimizer=lars"]),
        ("train optimizer=lars optimizer.trust", ["optimizer.trust_coefficient="]),  # of the choice that was typed
        ("train optimizer.trust", []),
        ("train +optimizer.mom", ["+optimizer.momentum="]),
        ("train batch.ramp.t", ["batch.ramp.totals="]),
        ("train guard.policy=r", ["guard.policy=rollback"]),
        ("train scaling.rule=s", ["scaling.rule=sqrt"]),
        ("train observers.progress=", ["observers.progress=true", "observers.progress=false"]),
        ("train resume=a", ["resume=auto"]),
        ("train experiment=study/g", ["experiment=study/geometry"]),
        ("plan plan.form", ["plan.format="]),
        ("find-lr find_lr.see", ["find_lr.seeds="]),
        ("completion z", ["zsh"]),
        ("trian opt", []),
    ],
)
def test_words_that_may_stand_at_the_cursor(line: str, expected: list[str]):
    *before, current = line.split(" ")
    assert [word.text for word in completions(before, current)] == expected


@pytest.mark.parametrize("line", ["train run.dir=", "train resume=ru", "train --config-dir ", "compare "])
def test_paths_are_left_to_the_shell(line: str):
    *before, current = line.split(" ")
    with pytest.raises(PathsError):
        completions(before, current)


def test_choices_of_a_folder_of_ones_own_are_completed(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\nwidth: 3  # of it\n", encoding="utf-8")
    before = ["train", "--config-dir", str(tmp_path)]
    assert [(one.text, one.about) for one in completions(before, "model=mi")] == [("model=mine", "Mine")]
    assert [(one.text, one.about) for one in completions([*before, "model=mine"], "model.wi")] == [
        ("model.width=", "3  of it")
    ]


DRIVEN_BASH = """
source completion.bash
complete -p largebatch
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line}
    COMPREPLY=()
    _largebatch largebatch 2>/dev/null
    echo "${COMPREPLY[*]}"
done
"""


def test_bash_replaces_only_what_stands_behind_the_equals_sign(shell_environment: dict[str, str]):
    lines = [
        "largebatch tra",
        "largebatch train optimizer=la",
        "largebatch train batch.mi",
        "largebatch train run.dir=ru",
    ]
    said = shell(shell_environment, "bash", "--norc", "-c", DRIVEN_BASH, "bash", *lines)
    assert said == ["complete -F _largebatch largebatch", "train", "lamb lars", "batch.micro=", "runs"]


START = {
    "bash": ("bash --norc --noprofile -i", "source completion.bash"),
    "zsh": ("zsh -f -i", "autoload -Uz compinit; compinit -u; source completion.zsh"),
}


def typed(environment: dict[str, str], name: str, *lines: str) -> list[str]:
    """What `largebatch` was called with when these lines were typed at a terminal, TABs included."""
    command, start = START[name]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(environment["HOME"])
        os.execvpe("env", ["env", *command.split()], environment)
    seen = ""

    def until(mark: str) -> None:
        nonlocal seen
        while mark not in seen:
            seen += os.read(terminal, 65536).decode(errors="replace")
        seen = seen.partition(mark)[2]

    try:
        os.write(terminal, f"{start}; echo rea''dy\n".encode())
        until("ready")
        called = []
        for line in lines:
            os.write(terminal, f"{line}\n".encode())
            until("CALLED<")
            while ">" not in seen:
                seen += os.read(terminal, 65536).decode(errors="replace")
            called.append(seen.partition(">")[0])
        return called
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


@pytest.mark.parametrize("name", ["bash", pytest.param("zsh", marks=needs_zsh)])
def test_a_tab_at_a_terminal_completes_the_command(name: str, shell_environment: dict[str, str]):
    command = Path(shell_environment["HOME"]) / "bin" / "largebatch"
    real = command.read_text(encoding="utf-8")
    shown = '[ "$1" = completion ] || { echo "CALLED<$*>"; exit; }\n'
    command.write_text(real.replace("exec", f"{shown}exec"), encoding="utf-8")
    lines = [
        "largebatch tra\tbatch.max_m\t7",
        "largebatch plan optimizer=adam\tseed=3",
        "largebatch plan run.dir=ru\tone",
    ]
    assert typed(shell_environment, name, *lines) == [
        "train batch.max_micro=7",
        "plan optimizer=adamw seed=3",
        "plan run.dir=runs/one",
    ]


@needs_fish
def test_fish_completes_with_descriptions(shell_environment: dict[str, str]):
    line = (
        "source completion.fish; complete -C 'largebatch train optimizer=la'; complete -C 'largebatch train run.dir=ru'"
    )
    first, second, third = shell(shell_environment, "fish", "--no-config", "-c", line)
    assert first == "optimizer=lamb\tLAMB (You et al. 2019, version 5)"
    assert second == "optimizer=lars\tLARS (You et al. 2017)"
    assert third.startswith("run.dir=runs/")


def test_the_verb_says_how_to_install_it(capsys: pytest.CaptureFixture[str]):
    assert main(["completion"]) == 2
    assert 'eval "$(largebatch completion bash)"' in capsys.readouterr().err
    for shell_name, script in SCRIPTS.items():
        assert main(["completion", shell_name]) == 0
        assert capsys.readouterr().out == script
    assert main(["train", "-sc", "install=bash"]) == 2
    assert "`largebatch completion bash`" in capsys.readouterr().err

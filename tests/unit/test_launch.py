from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for path in [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"]
    if path.suffix in (".sh", ".sbatch", "") and path.is_file()
)
NAME = re.compile(r"[A-Za-z0-9_-]+")


def names(requirements: str) -> set[str]:
    lines = (line.split("#")[0].strip() for line in requirements.splitlines())
    return {match[0].lower() for line in lines if (match := NAME.match(line))}


def test_constraints_pin_exactly_the_direct_dependencies() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    required = {name.lower() for name in re.findall(r'"([A-Za-z0-9_-]+)(?:\[[^"]*\])?(?:>=[^"]*)?"', project)}
    constraints = (ROOT / "launch" / "constraints.txt").read_text()
    assert "torch" in required
    assert "mypy" in required
    alone = set(re.findall(r"--no-deps .* ([a-z0-9_]+)\)\n", (ROOT / "launch" / "setup_venv.sh").read_text()))
    assert alone == {"timm"}
    assert (required | alone) - {"largebatch"} == names(constraints)  # the project names itself in an extra
    assert all("==" in line for line in constraints.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_parses_and_begins_with_its_usage(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[1].startswith("# Usage: ")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    found = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        ["torchrun.sh"],
        ["torchrun.sh", "0"],
        ["torchrun.sh", "batch.total=64"],
        ["accelerate.sh", "gpu"],
        ["multinode.sh", "2", "8", "node1:29400"],
        ["multinode.sh", "2", "8", "node1", "job"],
        ["multinode.sh", "2", "8", "node1:29400", "batch.total=64"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_print_the_usage_and_install_nothing(command: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = subprocess.run(
        [ROOT / "launch" / command[0], *command[1:]],
        env={"PATH": "/usr/bin:/bin", "LARGEBATCH_VENV": str(venv)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"Usage: launch/{command[0]} ")
    assert not venv.exists()


def test_a_python_that_is_too_old_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        [ROOT / "launch" / "setup_venv.sh"],
        env={"PATH": "/usr/bin:/bin", "LARGEBATCH_VENV": str(tmp_path / "venv"), "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.10 or newer" in done.stderr
    assert str(old) in done.stderr

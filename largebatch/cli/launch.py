"""`largebatch launch`: the scripts of launch/, wherever the package is installed, with the Python that runs this."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from largebatch import launch_dir
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.cli.process.refusing import refuse

_SCRIPTS = {"torchrun": "torchrun.sh", "accelerate": "accelerate.sh", "multinode": "multinode.sh"}
_OVERRIDE = re.compile(r"[~+]{0,2}[\w.@/]+=|~")
_USAGE = """usage: largebatch launch torchrun NUM_PROCESSES [KEY=VALUE ...]
       largebatch launch accelerate NUM_PROCESSES [KEY=VALUE ...]
       largebatch launch multinode NUM_NODES NUM_PROCESSES HOST:PORT RUN_ID [KEY=VALUE ...]
       largebatch launch slurm [SBATCH OPTION ...] [KEY=VALUE ...]
       largebatch launch show FILE          print a file, for you to change: slurm.sbatch, k8s/job.yaml, Dockerfile
       largebatch launch folder             print the folder of these files

Starts `largebatch train` on several processes. Every script begins with what it does and which variables it reads:
largebatch launch show torchrun.sh"""


def main(arguments: Sequence[str]) -> int:
    """Replaces this process by the script; returns only for `show`, `folder`, help, and wrong input."""
    folder = Path(launch_dir())
    how, *rest = arguments or ["--help"]
    if how in ("-h", "--help"):
        print(_USAGE)
        return EXIT_DONE if arguments else EXIT_WRONG_INPUT
    if how == "folder" and not rest:
        print(folder)
        return EXIT_DONE
    if how == "show":
        return _show(folder, rest)
    if how in _SCRIPTS:
        return _replace_by(["bash", str(folder / _SCRIPTS[how]), *rest], _environment(folder))
    if how == "slurm":
        return _replace_by(_sbatch(folder, rest), _environment(folder))
    return refuse(
        f"launch {how}: there is no such launcher. Choose torchrun, accelerate, multinode, slurm, or show FILE."
    )


def _show(folder: Path, names: Sequence[str]) -> int:
    files = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    )
    if len(names) != 1 or names[0] not in files:
        return refuse(f"launch show {' '.join(names)}: give one of {', '.join(files)}.")
    print((folder / names[0]).read_text(encoding="utf-8"), end="")
    return EXIT_DONE


def _sbatch(folder: Path, arguments: Sequence[str]) -> list[str]:
    """What Slurm gets: options up to the first KEY=VALUE, the script, and the overrides."""
    is_override = [not one.startswith("-") and _OVERRIDE.match(one) is not None for one in arguments]
    first = is_override.index(True) if True in is_override else len(arguments)
    return ["sbatch", *arguments[:first], str(folder / "slurm.sbatch"), *arguments[first:]]


def _environment(folder: Path) -> dict[str, str]:
    """This Python first on PATH, and not one that the scripts would make."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "LARGEBATCH_VENV": "none", "LARGEBATCH_LAUNCH": str(folder)}


def _replace_by(command: list[str], environment: dict[str, str]) -> int:
    if shutil.which(command[0], path=environment["PATH"]) is None:
        return refuse(f"launch: there is no command {command[0]} on PATH. Run this where {command[0]} is.")
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)
    raise AssertionError  # it does not return

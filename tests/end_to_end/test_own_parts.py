"""The snippets of the READMEs under "your own": each `mine.py`, trained with the command below it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

ROOT = Path(__file__).resolve().parents[2]
SNIPPET = re.compile(r"```python\n# mine\.py\n(.*?)```\n```bash\n(.*?)```", flags=re.DOTALL)
SMALL = ("model=linear", "length=12steps", "observers.evaluation.every=null", "observers.metrics.every=5")
# README -> what the last rows of the run show of the part.
SHOWN = {
    "largebatch/training/README.md": ("mine/drift", "mine/mean_loss"),
    "largebatch/losses/README.md": ("eval/val_rms", "gap/rms"),
    "largebatch/batch/README.md#0": ("train/lr",),
    "largebatch/batch/README.md#1": ("train/loss",),
}


def snippets() -> dict[str, tuple[str, list[str]]]:
    found = {}
    for name in dict.fromkeys(key.partition("#")[0] for key in SHOWN):
        parts = SNIPPET.findall((ROOT / name).read_text())
        for number, (code, command) in enumerate(parts):
            key = name if len(parts) == 1 else f"{name}#{number}"
            found[key] = code, shlex.split(command.strip().splitlines()[-1])[2:]
    return found


def test_every_snippet_is_here():
    assert snippets().keys() == SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_a_snippet_runs_with_its_command(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, arguments = snippets()[name]
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    done = train_quietly(compose_run(*SMALL, *arguments), tmp_path / "run")
    monkeypatch.delitem(sys.modules, "mine")
    rows: list[Any] = done.rows
    assert done.status == "finished"
    for key in SHOWN[name]:
        assert any(key in row for row in rows), key
    if "schedule=own" in arguments:
        rates = {row["step"]: row["train/lr"] for row in rows if "train/lr" in row}
        assert rates[10] / rates[5] == pytest.approx(((12 - 9) / (12 - 4)) ** 2)

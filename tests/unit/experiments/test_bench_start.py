"""`bench start` runs what it says it measures, each command as a process of its own, and counts on its exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from largebatch.experiments.bench import start


def test_a_process_is_timed_whole_and_an_unexpected_end_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    code, seconds = start.timed([sys.executable, "-c", "import time; time.sleep(0.05); exit(7)"], str(tmp_path))
    assert code == 7
    assert seconds > 0.05
    few = {name: start.COMMANDS[name] for name in ("list of verbs, --help", "an unknown key")}
    monkeypatch.setattr(start, "COMMANDS", few)
    assert start.measure(start.Settings(repetitions=1))
    shown = capsys.readouterr().out
    assert all(name in shown for name in few)
    monkeypatch.setattr(start, "COMMANDS", {"no verb": (("nonsense",), 0)})
    assert not start.measure(start.Settings(repetitions=1))
    assert "nonsense ended with 2" in capsys.readouterr().err

"""Wrong input under torchrun: its report ends with our message, told once, by one rank of the machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from largebatch.cli.process import refusing
from largebatch.distributed.signals import heeded_signals, stop_at_once


@pytest.fixture
def torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which its agent looks for the error of this rank."""
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(refusing, "_OTHERS_S", 0)
    return tmp_path / "error.json"


def test_the_message_is_the_root_cause_in_torchruns_own_words(torchrun: Path, capsys: pytest.CaptureFixture[str]):
    assert refusing.refuse("2 errors on the command line:\n  - lr=${X}: a\n  - b") == 2
    assert capsys.readouterr().err == "", "once"
    failure = ProcessFailure(local_rank=0, pid=7, exitcode=2, error_file=str(torchrun))
    *_, first, second, third, border = str(ChildFailedError("largebatch", {0: failure})).splitlines()
    assert first == "  traceback : largebatch: 2 errors on the command line:"
    assert [second, third] == ["    - lr=${X}: a", "    - b"]
    assert set(border) == {"="}
    assert failure.timestamp > 1_700_000_000


def test_where_nothing_can_be_left_the_message_is_printed(
    torchrun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torchrun.mkdir()
    assert refusing.refuse("a") == 2
    assert capsys.readouterr().err == "largebatch: a\n"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # a leftover of another launcher
    torchrun.rmdir()
    assert refusing.refuse("b") == 2
    assert capsys.readouterr().err == "largebatch: b\n"
    assert not torchrun.exists()


def test_a_rank_that_torchrun_ends_has_not_failed_too(torchrun: Path, monkeypatch: pytest.MonkeyPatch):
    """Of each that has, its report has a paragraph of seven lines."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    before = {number: signal.getsignal(number) for number in heeded_signals()}
    monkeypatch.setattr(refusing.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        stop_at_once()
        assert refusing.refuse("a") == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    monkeypatch.setattr(refusing.time, "sleep", lambda _: None)
    assert refusing.refuse("a") == 2, "nobody else has refused"
    assert not torchrun.exists()

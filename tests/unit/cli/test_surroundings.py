"""A verb runs in a notebook, in a thread and on any screen, and leaves the process as it found it."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from largebatch.__main__ import main
from largebatch.cli.process import surroundings

ROOT = Path(__file__).resolve().parents[3]
TINY = ("train", "debug=tiny", "length=2steps", "logger.plots=false")


class Cell(io.TextIOBase):
    """Where a notebook prints: no terminal, no file behind it."""

    def write(self, text: str) -> int:
        return len(text)


def found() -> dict[str, object]:
    return {
        "arguments": list(sys.argv),
        "search path": list(sys.path),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "generator": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "type": torch.get_default_dtype(),
        "errors of screens": [getattr(screen, "errors", None) for screen in (sys.stdout, sys.stderr)],
    }


@pytest.mark.usefixtures("in_a_folder")
def test_a_notebook_and_a_thread_get_their_runs_and_their_process_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell runs inside an event loop, with the kernel's arguments; only the main thread may ask for signals."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "stdout", Cell())
    monkeypatch.setattr(sys, "stderr", Cell())
    before = found()
    codes = {}

    async def cell() -> None:
        codes["notebook"] = main([*TINY, "run.dir=a"])

    asyncio.run(cell())
    assert found() == before
    thread = threading.Thread(target=lambda: codes.update(thread=main([*TINY, "run.dir=b"])))
    thread.start()
    thread.join()
    assert codes == {"notebook": 0, "thread": 0}
    assert found() == before
    a, b = ((tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in "ab")
    assert a.count("train/loss") == b.count("train/loss") == 2


def test_a_second_run_beside_the_first_is_refused(capsys: pytest.CaptureFixture[str]):
    codes = []
    with surroundings.restored_surroundings():
        assert main(["--version"]) == 0  # the same thread may go on
        thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
        thread.start()
        thread.join()
    assert codes == [2]
    assert "another thread of this process is running a verb" in capsys.readouterr().err
    assert main(["--version"]) == 0


@pytest.mark.usefixtures("in_a_folder")
def test_a_screen_without_unicode_shows_plain_signs_and_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch):
    """The sign of a standard error, +-, ended every run on such a screen with a traceback, after training."""
    for encoding in ("ascii", "latin-1"):
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            with surroundings.restored_surroundings():
                print("0.5 ± 0.1, größe → 中")
                print("─" * 3)
            assert screen.errors == "strict"
        screen.flush()
        shown = screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        plain = ("0.5 +- 0.1, gr\\xf6\\xdfe", "0.5 ± 0.1, größe")[encoding == "latin-1"]
        assert shown == plain + " -> \\u4e2d\n---\n"


def test_closed_screens_are_no_trouble(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert main(["trian"]) == 2
    assert (sys.stdout, sys.stderr) == (None, None)


def test_in_the_posix_locale_names_have_umlauts_and_files_are_utf_8(tmp_path: Path):
    """Without Python's UTF-8 mode, an argument, a path and a text would be ASCII there."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "WANDB_", "PYTHON"))}
    environ |= {"PYTHONPATH": str(ROOT), "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    named = ["run.name='größe-中'", "run.dir='über/lauf'"]
    done = subprocess.run(
        [sys.executable, "-m", "largebatch", *TINY, *named], cwd=tmp_path, env=environ, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    for name in ("config.yaml", "overrides.txt"):
        assert "größe-中" in (tmp_path / "über" / "lauf" / name).read_text(encoding="utf-8")


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_run_goes_on_where_nothing_can_be_printed_any_more_and_a_table_that_cannot_be_is_told(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """tee was killed, the terminal was hung up, the disk of the log is full: the run ended with a traceback."""

    class Gone(Cell):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    gone = Gone()
    monkeypatch.setattr(sys, "stdout", gone)
    assert main([*TINY, "run.dir=a"]) == 0
    assert sys.stdout is gone
    assert Path("a/metrics.jsonl").read_text(encoding="utf-8").count("train/loss") == 2
    capsys.readouterr()
    assert main(["--version"]) == (141 if number == errno.EPIPE else 1)  # what it prints is all that it has
    said, problem = capsys.readouterr().err, OSError(number, os.strerror(number))
    assert said == ("" if number == errno.EPIPE else f"largebatch: cannot write the output: {problem}\n")
    assert main(["trian"]) == 2

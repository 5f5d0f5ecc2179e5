from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from largebatch.folder_lock import LOCK, FolderInUseError, FolderLock

HOLD = """
import os, sys
from pathlib import Path
from largebatch.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    if os.fork() == 0:  # as a loading process: it ends when it hears of it
        print("held", flush=True)  # and is a process of its own by now
        sys.stdin.read()
        os._exit(0)
    os.wait()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until it is killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_the_first_ones_number_and_a_kill_lets_go(tmp_path: Path):
    """At once, although a process that was forked from it lives on."""
    process = holder(tmp_path)
    try:
        owner = f"in use by process {process.pid} on {socket.gethostname()} since"
        with pytest.raises(FolderInUseError, match=owner), FolderLock(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with FolderLock(tmp_path):
        pass
    process.communicate()


def test_a_folder_is_free_again_after_its_run(tmp_path: Path):
    for _ in range(2):
        with FolderLock(tmp_path / "new"):
            pass


def test_a_lock_file_without_an_owner_in_it_is_still_a_lock(tmp_path: Path):
    with FolderLock(tmp_path):
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(FolderInUseError, match="in use by another process"), FolderLock(tmp_path):
            pass

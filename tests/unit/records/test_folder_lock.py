from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from largebatch.records.folder_lock import LOCK, FolderInUseError, FolderLock
from largebatch.records.run_folder import new_folder

HOLD = """
import os, sys
from pathlib import Path
from largebatch.records.folder_lock import FolderLock
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


@pytest.mark.fault(34, "two runs in one folder", "refused, owner named")
@pytest.mark.bad_input("a run folder in use")
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


def test_a_file_system_without_locks_is_told_and_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path) as lock:
        assert "has no locks (Function not implemented): a second run in this folder" in str(lock.problem)


def test_whoever_is_being_ended_is_waited_for_where_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FolderLock(tmp_path) as first:
        monkeypatch.setattr(time, "sleep", lambda seconds: first.__exit__(None, None, None))
        with FolderLock(tmp_path, wait_s=60):
            pass


def test_of_many_that_ask_in_the_same_second_each_gets_a_folder_of_its_own(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(str(tmp_path), "name"), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_lock_file_without_an_owner_in_it_is_still_a_lock(tmp_path: Path):
    with FolderLock(tmp_path):
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(FolderInUseError, match="in use by another process"), FolderLock(tmp_path):
            pass

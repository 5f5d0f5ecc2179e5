from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from largebatch.records.durable_files import (
    NotWrittenError,
    remove_abandoned_drafts,
    replacing,
    write_record,
    write_whole,
)
from tests.unit.records.failing_disk import FAILURES, Death, FailingDisk


def write_by_name(path: Path, content: bytes) -> None:
    with replacing(path) as draft:
        draft.write_bytes(content)


WAYS: dict[str, Callable[[Path, bytes], object]] = {
    "whole": write_whole,
    "parts": lambda path, content: write_whole(
        path, (content[place : place + 3] for place in range(0, len(content), 3))
    ),
    "by name": write_by_name,
}


@pytest.mark.fault(27)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", FAILURES)
def test_whichever_call_fails_the_file_is_the_former_or_the_new_one(
    way: str, error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "summary.json"
    for after in (0, 2):
        for call in range(40):
            write_whole(path, b"the former")
            with monkeypatch.context() as patch:
                disk = FailingDisk(patch, call, error, lasting=call % 2 == 0, after=after)
                try:
                    WAYS[way](path, b"the new one")
                    told = False
                except (OSError, Death):
                    told = True
            content = path.read_bytes()
            assert content in (b"the former", b"the new one"), (call, disk.calls)
            assert told or content == b"the new one", (call, disk.calls)
            if disk.failed is None:
                break
        assert disk.failed is None, "the injection misses the code"
    write_whole(path, b"the last")
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"], "the next one removes drafts of the dead"


def plant(kind: str, path: Path, other: Path) -> None:
    other.write_text("not to be touched")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "dangling":
        path.symlink_to(other.with_name("absent"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("link", "a symbolic link"),
        ("dangling", "a symbolic link"),
        ("device", "a symbolic link"),
        ("pipe", "a pipe"),
        ("folder", "a folder"),
    ],
)
def test_nothing_is_written_through_a_link_or_into_what_is_no_file(kind: str, named: str, tmp_path: Path):
    path, other = tmp_path / "run" / "summary.json", tmp_path / "bashrc"
    path.parent.mkdir()
    plant(kind, path, other)
    for write in WAYS.values():
        with pytest.raises(OSError, match=rf"summary\.json is {named}.* remove it, or choose another place"):
            write(path, b"x")
    assert other.read_text() == "not to be touched"
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "bashrc"}
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_a_device_is_never_replaced():
    """Root could: a draft in /dev, renamed over the null device, would break the machine."""
    with pytest.raises(OSError, match="/dev/null is a device"):
        write_whole("/dev/null", "x")
    with pytest.raises(OSError, match="/dev/stdout is a symbolic link"):
        write_record("/dev/stdout", {})


def test_another_name_of_the_file_keeps_what_it_has(tmp_path: Path):
    path, other = tmp_path / "plan.json", tmp_path / "backup.json"
    write_whole(path, "former")
    os.link(path, other)
    write_whole(path, "new")
    assert (path.read_text(), other.read_text()) == ("new", "former")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o007])
def test_modes_are_those_of_the_umask(umask: int, tmp_path: Path):
    former = os.umask(umask)
    try:
        for way, write in WAYS.items():
            write(tmp_path / "folder" / way, b"x")
    finally:
        os.umask(former)
    modes = {stat.S_IMODE((tmp_path / "folder" / way).stat().st_mode) for way in WAYS}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_writers_of_one_name_never_meet_and_the_last_one_wins_whole(tmp_path: Path):
    path = tmp_path / "report.html"
    contents = [bytes([65 + number]) * 50_000 for number in range(4)]

    def write_often(content: bytes) -> None:
        for _ in range(10):
            write_whole(path, content)

    threads = [threading.Thread(target=write_often, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in contents
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_the_draft_of_a_killed_writer_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path):
    source = (
        "import os, signal, sys\n"
        "from largebatch.records.durable_files import write_whole\n"
        "def parts():\n"
        "    yield b'x'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(sys.argv[1], parts())\n"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path / "plan.json")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".plan.json.tmp-")
    with replacing(tmp_path / "other.json") as draft:
        draft.write_text("y")
        remove_abandoned_drafts(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == [draft.name]


def test_a_long_name_has_a_draft_too(tmp_path: Path):
    path = tmp_path / ("ä" * 120 + ".png")
    write_whole(path, "x")
    assert path.read_text() == "x"


def test_a_record_is_json(tmp_path: Path):
    assert json.loads(write_record(tmp_path / "a" / "b.json", {"x": [1, None]}).read_text()) == {"x": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "a" / "b.json", {"x": float("nan")}, allow_nan=False)
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, None]}


def test_a_full_file_system_leaves_the_former_file(tmp_path: Path):
    """A real one, of 64 KiB; only root may mount it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        path = tmp_path / "summary.json"
        write_whole(path, b"former")
        for write in WAYS.values():
            with pytest.raises(NotWrittenError, match=rf"{path} cannot be written: No space") as caught:
                write(path, b"x" * 100_000)
            assert caught.value.errno == errno.ENOSPC
            assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
            assert path.read_bytes() == b"former"
        write_whole(path, b"x" * 30_000)
    finally:
        subprocess.run(["umount", tmp_path], check=True)

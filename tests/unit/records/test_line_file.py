"""Rows that are appended: what a failing disk, and somebody who tidies up, may do to them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from largebatch.records.line_file import LineFile
from tests.unit.records.failing_disk import FAILURES, Death, FailingDisk


def lines(path: Path) -> list[str]:
    text = path.read_text()
    assert text.endswith("\n")
    return text.splitlines()


@pytest.mark.fault(27)
@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("after", [0, 1, 5])
def test_whichever_call_fails_earlier_lines_stay_and_later_ones_are_whole(
    error: int | None, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for call in range(30):
        path = tmp_path / f"{call}.jsonl"
        path.write_bytes(b"torn by a kill")  # the first line has no end
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, call, error, lasting=True, after=after)
            written, lost, rows = [], [], LineFile(path)
            for line in ("line 0", "line 1", "line 2"):
                is_lost = True
                with contextlib.suppress(OSError, Death):
                    rows.append(line.encode())
                    is_lost = False
                (lost if is_lost else written).append(line)
        if error is None:
            rows = LineFile(path)  # of another process
        rows.append(b"the last")
        rows.close()
        found = lines(path)
        assert found[0] == "torn by a kill"
        whole = [line for line in found[1:] if line in {*written, *lost, "the last"}]
        assert whole == [*written, *(line for line in lost if line in whole), "the last"]
        assert error is None or whole == found[1:], "a part of a line is taken back"
        if disk.failed is None:
            break
    assert disk.failed is None, "the injection misses the code"


def test_a_renamed_folder_takes_its_rows_along(tmp_path: Path):
    rows = LineFile(tmp_path / "run" / "metrics.jsonl")
    rows.append(b"1")
    (tmp_path / "run").rename(tmp_path / "moved")
    rows.append(b"2")
    os.remove(tmp_path / "moved" / "metrics.jsonl")
    rows.append(b"3")
    rows.close()
    assert lines(tmp_path / "moved" / "metrics.jsonl") == ["1", "2", "3"]
    assert not (tmp_path / "run").exists()
    (told,) = rows.news
    assert f"{tmp_path}/moved/metrics.jsonl was removed or renamed" in told


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_file_that_is_gone_is_back_with_all_its_rows(how: str, tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = LineFile(path)
    for number in range(3):
        rows.append(b"%d" % number)
    path.unlink() if how == "removed" else path.rename(tmp_path / "metrics.jsonl.1")
    rows.append(b"3")
    assert lines(path) == ["0", "1", "2", "3"]
    rows.append(b"4")
    rows.close()
    assert lines(path) == ["0", "1", "2", "3", "4"]
    assert len(rows.news) == 1


def test_rows_go_on_in_the_file_that_an_editor_has_put_in_place(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = LineFile(path)
    rows.append(b"1")
    (tmp_path / "edited").write_text("1\na remark")
    (tmp_path / "edited").rename(path)
    rows.append(b"2")
    assert lines(path) == ["1", "a remark", "2"]
    assert "was replaced by another file" in rows.news[0]
    path.unlink()
    path.symlink_to(tmp_path / "bashrc")
    with pytest.raises(OSError, match="is a symbolic link"):
        rows.append(b"3")
    assert not (tmp_path / "bashrc").exists()


def test_rows_of_a_removed_folder_are_kept_until_it_is_made_anew(tmp_path: Path):
    folder = tmp_path / "run"
    rows = LineFile(folder / "metrics.jsonl")
    rows.append(b"1")
    shutil.rmtree(folder)
    rows.append(b"2")
    assert not folder.exists(), "another run may begin there: whoever has the lock makes it"
    rows.come_back(folder / "metrics.jsonl")
    rows.append(b"3")
    assert lines(folder / "metrics.jsonl") == ["1", "2", "3"]
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="its folder was removed, and its lines with it"):
        rows.close()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_planted_name_is_refused_and_does_not_hang(kind: str, tmp_path: Path):
    path, other = tmp_path / "metrics.jsonl", tmp_path / "bashrc"
    other.write_text("not to be touched")
    {"link": lambda: path.symlink_to(other), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(OSError, match="only regular files are written"):
        LineFile(path).append(b"1")
    assert other.read_text() == "not to be touched"


def test_another_name_of_the_file_keeps_what_it_has(tmp_path: Path):
    path, backup = tmp_path / "metrics.jsonl", tmp_path / "backup.jsonl"
    path.write_text("1\n")
    os.link(path, backup)
    rows = LineFile(path)
    rows.append(b"2")
    rows.close()
    assert (lines(path), lines(backup)) == (["1", "2"], ["1"])

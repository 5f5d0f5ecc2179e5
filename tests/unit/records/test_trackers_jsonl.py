from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.records.trackers import JsonlTracker, Problems, read_metrics, set_stale_rows_aside, torn_lines
from largebatch.records.trackers.tracker import plain_values


def row(step: int, **more: float | int | str) -> dict[str, float | int | str]:
    return {"step": step, "samples_seen": 32 * step, **more}


def write(path: Path, *rows: dict[str, float | int | str]) -> None:
    tracker = JsonlTracker(path)
    for each in rows:
        tracker.log(each)
    tracker.finish({}, [])
    assert tracker.problems == []


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that is full after `num_bytes` of any file: the kernel writes what fits and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_numbers_read_back_bit_for_bit_and_texts_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [
        row(1, wall_s=0.1 + 0.2, note='a "quoted"\nline, ü'),
        row(2**40, **{"train/loss": 5e-324, "train/lr": 1e300}),
    ]
    write(path, *rows)
    assert read_metrics(path) == rows
    assert read_metrics(path.parent) == rows  # the folder of a run
    assert [type(value) for value in read_metrics(path)[1].values()] == [int, int, float, float]


def test_a_row_is_one_compact_line_of_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1, a=math.nan, b=math.inf, c=-math.inf, d=0.5), row(2))
    first, second = path.read_text().splitlines()
    assert first == '{"step":1,"samples_seen":32,"a":"NaN","b":"Infinity","c":"-Infinity","d":0.5}'
    assert second == '{"step":2,"samples_seen":64}'


def test_non_finite_numbers_come_back_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1, a=math.nan, b=math.inf, c=-math.inf, d="nan"))
    (read,) = read_metrics(path)
    assert isinstance(read["a"], float)
    assert math.isnan(read["a"])
    assert (read["b"], read["c"], read["d"]) == (math.inf, -math.inf, "nan")


def test_a_row_is_on_disk_before_log_returns(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    for step in range(1, 4):
        tracker.log(row(step))
        assert read_metrics(tmp_path / "metrics.jsonl")[-1] == row(step)


def test_scalars_of_numpy_and_torch_are_numbers_and_other_objects_cost_only_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    bad = {"bad": object(), "vector": np.zeros(2)}
    for step in (1, 2):
        tracker.log(row(step) | {"np": np.float32(0.5), "count": np.int64(7), "torch": torch.tensor(0.25)} | bad)  # type: ignore[arg-type]
    assert read_metrics(path) == [row(step) | {"np": 0.5, "count": 7, "torch": 0.25} for step in (1, 2)]
    assert tracker.problems == [
        "metrics.jsonl: the value of 'bad' was left out: object is no number or text (2 times)",
        "metrics.jsonl: the value of 'vector' was left out: ndarray is no number or text (2 times)",
    ]
    assert len(capsys.readouterr().err.splitlines()) == 2  # each kind once


@pytest.mark.parametrize("cut", [1, 2, 10, 20])
def test_a_line_torn_by_a_kill_loses_itself_and_no_other_row(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1), row(2), row(3))
    path.write_bytes(path.read_bytes()[:-cut])
    write(path, row(4), row(5))
    whole = cut == 1  # only the line's end is missing: the row is all there
    assert read_metrics(path) == [row(1), row(2), *([row(3)] if whole else []), row(4), row(5)]
    assert torn_lines(path) == ([] if whole else [3])


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\xff\xfe", b"12", b'["step"]', b'{"step":1}{"step":2}'])
def test_lines_that_are_no_row_are_skipped_and_numbered(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1}\n' + garbage + b'\n\n{"step":2}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    assert torn_lines(path) == [2]


@pytest.mark.fault(27)
def test_a_full_disk_is_counted_and_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with largest_file(0):
        for step in range(5):
            tracker.log(row(step))
    tracker.finish({}, [])
    line = "metrics.jsonl: a row was lost: OSError: [Errno 27] File too large"
    assert tracker.problems == [f"{line} (5 times)"]
    assert capsys.readouterr().err == f"warning: {line}\n"


@pytest.mark.fault(27)
def test_rows_after_a_full_disk_are_whole_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(row(1))
    with largest_file(path.stat().st_size + 10):  # 10 bytes of the second row fit
        tracker.log(row(2))
        tracker.log(row(3))
    tracker.log(row(4))
    tracker.finish({}, [])
    assert read_metrics(path) == [row(1), row(4)]
    assert torn_lines(path) == [], "the 10 bytes are taken back"
    (problem,) = tracker.problems
    assert problem.endswith("(2 times)")


def test_a_folder_that_cannot_be_made_costs_rows_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    tracker = JsonlTracker(tmp_path / "file" / "metrics.jsonl")
    tracker.log(row(1))
    tracker.finish({}, [])
    (problem,) = tracker.problems
    assert "a row was lost" in problem


def test_resume_sets_later_rows_aside_and_keeps_the_others_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1), row(2, **{"train/loss": math.nan}), row(2, **{"eval/val_loss": 0.3}), row(3), row(4))
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"step":5,"sam')
    assert set_stale_rows_aside(path, 2) == tmp_path / "metrics.stale-1.jsonl"
    assert path.read_bytes() == b"".join(before[:3])
    tracker = JsonlTracker(path)
    tracker.log(row(3, again=1))
    assert read_metrics(path)[3:] == [row(3, again=1)]
    aside = tmp_path / "metrics.stale-1.jsonl"
    assert aside.read_bytes() == b"".join(before[3:]) + b'{"step":5,"sam\n'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.stale-1.jsonl"]


def test_a_second_resume_does_not_overwrite_what_the_first_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1), row(2), row(3))
    assert set_stale_rows_aside(path, 2) == tmp_path / "metrics.stale-1.jsonl"
    assert set_stale_rows_aside(path, 2) is None  # nothing is stale now
    assert set_stale_rows_aside(path, 1) == tmp_path / "metrics.stale-2.jsonl"
    assert [read_metrics(tmp_path / f"metrics.stale-{n}.jsonl")[0]["step"] for n in (1, 2)] == [3, 2]
    assert read_metrics(path) == [row(1)]


def test_of_the_step_itself_go_the_rows_that_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, row(1, **{"eval/val_loss": 0.1}), row(2, **{"train/loss": 1.0}), row(2, **{"eval/val_loss": 0.3}))
    assert set_stale_rows_aside(path, 2, comes_again=lambda one: "eval/val_loss" in one) is not None
    assert read_metrics(path) == [row(1, **{"eval/val_loss": 0.1}), row(2, **{"train/loss": 1.0})]


def test_a_resume_that_cannot_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(row(step) for step in range(10)))
    before = path.read_bytes()
    with largest_file(20), pytest.raises(OSError, match="too large"):
        set_stale_rows_aside(path, 5)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # no half-written file stays


def test_the_same_trouble_with_other_words_is_one_kind() -> None:
    problems = Problems("x")
    for n in range(3):
        problems.count("a row was lost", ValueError(f"value {n}\nand more"))
    problems.count("a row was lost", TypeError("t"))
    assert problems.lines() == ["x: a row was lost: ValueError: value 0 (3 times)", "x: a row was lost: TypeError: t"]


def test_an_interrupt_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), Problems("x").counted("anything"):
        raise KeyboardInterrupt


def test_plain_values_do_not_change_the_callers_row() -> None:
    given: dict[str, object] = {"step": 1, "bad": None}
    assert plain_values(given, Problems("x")) == {"step": 1}
    assert given == {"step": 1, "bad": None}
    assert json.dumps(given) == '{"step": 1, "bad": null}'

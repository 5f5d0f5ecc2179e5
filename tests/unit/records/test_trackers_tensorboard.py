from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from largebatch.records.trackers import TensorBoardTracker


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_numbers_are_scalars_at_samples_seen_and_texts_are_texts(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.log({"step": 1, "samples_seen": 96, "train/loss": 0.5, "note": "warmup"})
    tracker.log({"step": 2, "samples_seen": 192, "train/loss": math.nan})
    tracker.finish({}, [])
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["step", "train/loss"]
    assert points(events, "step") == [(96, 1.0), (192, 2.0)]
    (first, second) = points(events, "train/loss")
    assert first == (96, 0.5)
    assert second[0] == 192
    assert math.isnan(second[1])
    (note,) = events.Tensors("note/text_summary")
    assert (note.step, note.tensor_proto.string_val) == (96, [b"warmup"])
    assert tracker.problems == []


def test_finish_stores_the_pictures_and_the_summary(tmp_path: Path) -> None:
    plot = tmp_path / "training.png"
    Figure(figsize=(3, 2)).savefig(plot, dpi=10)
    tracker = TensorBoardTracker(tmp_path / "events")
    tracker.log({"samples_seen": 96, "train/loss": 0.5})
    tracker.finish({"steps": 1, "path": Path("a")}, [plot, tmp_path / "missing.png"])
    events = read(tmp_path / "events")
    (image,) = events.Images("plots/training")
    assert (image.step, image.width, image.height) == (96, 30, 20)
    (summary,) = events.Tensors("summary/text_summary")
    assert summary.tensor_proto.string_val == [b'```json\n{\n  "steps": 1,\n  "path": "a"\n}\n```']
    (problem,) = tracker.problems
    assert problem.startswith("TensorBoard: a plot was lost: FileNotFoundError")


def test_a_resume_hides_the_points_that_are_trained_again(tmp_path: Path) -> None:
    first = TensorBoardTracker(tmp_path)
    for samples in (96, 192, 288):
        first.log({"samples_seen": samples, "train/loss": 1.0})
    first.finish({}, [])
    second = TensorBoardTracker(tmp_path, resume_at_samples=192)
    second.log({"samples_seen": 288, "train/loss": 2.0})
    second.finish({}, [])
    assert points(read(tmp_path), "train/loss") == [(96, 1.0), (192, 1.0), (288, 2.0)]


def test_a_value_of_another_type_costs_itself_and_is_counted(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for samples in (1, 2):
        tracker.log({"samples_seen": samples, "bad": [1, 2], "train/loss": 0.5})  # type: ignore[dict-item]
    tracker.finish({}, [])
    assert points(read(tmp_path), "train/loss") == [(1, 0.5), (2, 0.5)]
    assert tracker.problems == ["TensorBoard: the value of 'bad' was left out: list is no number or text (2 times)"]


def test_a_writer_that_fails_is_counted_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    tracker = TensorBoardTracker(tmp_path)
    for method in ("add_scalar", "close"):
        monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{method}", full)
    for samples in range(3):
        tracker.log({"samples_seen": samples, "train/loss": 0.5})
    tracker.finish({}, [])
    full_disk = "OSError: [Errno 28] No space left on device"
    assert tracker.problems == [
        f"TensorBoard: a row was lost, or a part of it: {full_disk} (3 times)",
        f"TensorBoard: the event file could not be closed properly: {full_disk}",
    ]


def test_a_folder_that_cannot_be_made_costs_the_tracker_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    tracker = TensorBoardTracker(tmp_path / "file" / "tensorboard")
    tracker.log({"samples_seen": 1, "train/loss": 0.5})
    tracker.finish({}, [])
    (problem,) = tracker.problems
    assert problem.startswith("TensorBoard: no event file; the records are in metrics.jsonl")


def test_without_the_package_the_error_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'\(No module named .* with `pip install "largebatch\[tensorboard\]"'):
        TensorBoardTracker(tmp_path)

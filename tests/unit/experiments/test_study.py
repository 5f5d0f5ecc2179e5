"""`largebatch study`: on a task whose answer is known, stopped, resumed, side by side, in shares."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.study import workers
from largebatch.experiments.study.settings import StudyConfig
from largebatch.run.config.reading import parse_config, parse_section

CURVATURE = np.repeat(2.0 ** -np.arange(8), 16)
TASK = NoisyQuadratic(CURVATURE, CURVATURE)
SIZES = (16, 32, 128)
QUADRATIC = ["experiment=study/quadratic", f"study.batch_sizes={list(SIZES)}", "study.trials=5", "study.seeds=2"]
TINY = [
    "experiment=study/quadratic", "study.batch_sizes=[64,128]", "study.trials=2", "study.seeds=1",
    "data.train.num_samples=512", "length=4000samples", "study.target.value=2.0",
]  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("trials*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def without_seconds(rows: list[dict]) -> list[dict]:
    return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: row["id"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the noisy quadratic."""
    folder = tmp_path_factory.mktemp("study") / "quadratic"
    assert main(["study", *QUADRATIC, f"run.dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("name", ["digits", "quadratic"])
def test_every_study_experiment_parses(name: str):
    config = compose_config([f"experiment=study/{name}"], config_name="study")
    study = parse_section(config, "study", StudyConfig)
    assert parse_config(config).run.title == f"study_{name}"
    assert len(study.batch_sizes) >= 6


def closed_form(lr: float, batch_size: int) -> int | None:
    """Steps at which the expected loss is at the target; None if it never is."""
    if lr >= TASK.max_stable_lr():
        return None
    start = np.ones_like(CURVATURE)
    return TASK.steps_to_target(0.319, start, lr=lr, global_batch_size=batch_size, max_steps=4000)


def test_tuned_steps_follow_the_closed_form_at_its_best_rate_over_the_batch_size(folder: Path):
    """A run crosses before its expectation does, since it needs to only once: by up to a fifth where noise is large."""
    for point in json.loads((folder / "study.json").read_text())["numbers"]["points"]:
        size = point["batch_size"]
        rates = {row["setting"]["scaling.base_lr"] for row in rows_of(folder) if row["batch_size"] == size}
        best = min(steps for steps in (closed_form(lr, size) for lr in rates) if steps is not None)
        assert 0.7 * best <= point["median_steps"] <= 1.1 * best, (size, point["median_steps"], best)


def test_costs_are_those_of_the_runs_that_count(folder: Path):
    numbers = json.loads((folder / "study.json").read_text())["numbers"]
    for point, one in zip(numbers["points"], numbers["costs"], strict=True):
        assert (one["batch_size"], one["num_seeds"], one["num_missed"]) == (point["batch_size"], 2, 0)
        times = []
        for steps, run in zip(point["steps"], point["runs"], strict=True):
            rows = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
            step_s = [row["time/step_s"] for row in rows if "time/step_s" in row]
            times.append(steps * float(np.median(step_s[1:] or step_s)))
            assert [row["eval/val_loss"] for row in rows if "eval/val_loss" in row][-1] <= 0.319
        expected = {
            "steps": point["steps"],
            "samples": np.multiply(point["steps"], point["batch_size"]),
            "seconds": times,
        }
        for key, values in expected.items():
            assert one["costs"][key]["value"] == pytest.approx(float(np.exp(np.log(values).mean()))), key


def test_at_a_small_rate_a_single_run_takes_the_steps_of_the_closed_form(folder: Path):
    small = [row for row in rows_of(folder) if row["setting"]["scaling.base_lr"] < 0.05 and row["status"] == "reached"]
    assert small
    for row in small:
        known = closed_form(row["setting"]["scaling.base_lr"], row["batch_size"])
        assert 0.93 * known <= row["steps"] <= 1.05 * known  # evaluations are up to 5 % apart


def test_trials_are_the_same_at_every_batch_size_and_runs_that_count_have_other_seeds(folder: Path):
    rows = rows_of(folder)
    tuning = [row for row in rows if row["phase"] == "tuning"]
    drawn = [[row["setting"] for row in tuning if row["batch_size"] == size] for size in SIZES]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] == drawn[2]
    assert {row["seed"] for row in tuning} == {0}
    assert {row["seed"] for row in rows if row["phase"] == "final"} == {1, 2}


def test_a_trial_ends_where_it_cannot_win_and_evaluations_are_no_further_apart_than_told(folder: Path):
    rows = rows_of(folder)
    for size in SIZES:
        best = None
        for row in (row for row in rows if row["batch_size"] == size and row["phase"] == "tuning"):
            assert best is None or row["steps"] <= best
            assert row["steps"] - row["steps_before"] <= max(1, 0.05 * row["steps"])
            if row["status"] == "reached":
                best = row["steps"]
    assert {row["status"] for row in rows} >= {"reached", "beaten"}


def test_a_finished_study_trains_nothing_more_and_one_with_lost_rows_trains_only_those(folder: Path):
    path, record = folder / "trials.jsonl", folder / "study.json"
    before, told = rows_of(folder), json.loads(record.read_text())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-1][:40])  # killed while it wrote
    assert main(["study", *QUADRATIC, f"run.dir={folder}"]) == 0
    after = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert without_seconds(after) == without_seconds(before)
    assert json.loads(record.read_text())["numbers"]["points"] == told["numbers"]["points"]


def test_a_changed_target_is_refused_with_what_it_was(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["study", *QUADRATIC, f"run.dir={folder}", "study.target.value=0.5"]) == 2
    assert "study.target.value=0.5: was 0.319 when" in capsys.readouterr().err


def test_wrong_input_of_every_point_is_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = [*TINY, f"run.dir={tmp_path / 'study'}"]
    assert main(["study", *wrong, "study.batch_sizes=[8,1024]", "optimizer.momentum=-1"]) == 2
    said = capsys.readouterr().err
    assert "sgd at batch 1024: " in said
    assert "sgd at batch 8: " in said
    assert main(["study", *wrong, "study.optimizers=[lars,adam]"]) == 2
    assert "  - study: search has no range for adam" in capsys.readouterr().err
    assert main(["study", *wrong, "study.target.value=1000"]) == 2
    said = capsys.readouterr().err
    assert "- study.target.value=1000: eval/val_loss is" in said
    assert "Traceback" not in said
    assert not (tmp_path / "study" / "study.json").exists()


@pytest.mark.parametrize("is_fork_server", [False, True])
def test_only_the_fork_server_gives_up_its_exit_code(is_fork_server: bool, monkeypatch: pytest.MonkeyPatch):
    """Whoever else imports what it is prepared with, such as the search for doctests, must be able to fail."""
    registered: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: registered.append(call))
    monkeypatch.setattr("gc.freeze", lambda: registered.append("frozen"))
    monkeypatch.setattr("largebatch.distributed.signals.end_with_parent", lambda parent: registered.append("mortal"))
    started = "from multiprocessing.forkserver import main; main(3, 4)"
    monkeypatch.setattr("sys.orig_argv", ["python", "-c", started if is_fork_server else "pass"])
    importlib.reload(importlib.import_module("largebatch.experiments.fork_preload"))
    assert registered == (["mortal", "frozen", (os._exit, 0)] if is_fork_server else [])


def hang(begun: Path, job: str, stop: Callable[[], bool]) -> None:
    """A step of hours."""
    (begun / str(os.getpid())).touch()
    time.sleep(3600)


def test_a_stop_waits_for_no_step_of_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What a run that was stopped has done counts for nothing: it is made again."""
    monkeypatch.setattr(workers, "_context", lambda: multiprocessing.get_context("fork"))
    jobs = iter([SimpleNamespace(name="first"), SimpleNamespace(name="second")])
    made = workers.run_side_by_side(
        partial(hang, tmp_path),
        lambda running: next(jobs, None),
        lambda: len(list(tmp_path.iterdir())) == 2,
        workers=2,
    )
    assert list(made) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(next(tmp_path.iterdir()).name), 0)


def test_a_stop_waits_for_no_import_of_the_process_that_forks_workers(monkeypatch: pytest.MonkeyPatch):
    """On a crowded machine it took 40 seconds."""
    never = SimpleNamespace(start=threading.Event().wait)
    context = SimpleNamespace(get_start_method=lambda: "forkserver", Process=lambda target: never)
    monkeypatch.setattr(workers, "_context", lambda: context)
    asked = iter([False, False, True, True])
    assert list(workers.run_side_by_side(hang, lambda running: None, lambda: next(asked), workers=2)) == []

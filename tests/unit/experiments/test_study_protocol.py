"""The protocol of a study without training: what is tried, which run comes next, and what finished ones say."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from largebatch.experiments.study.joint_scaling import jointly_scaled
from largebatch.experiments.study.journal import Journal, require_same_study
from largebatch.experiments.study.protocol import Cell, Job, Row, best_trial, next_job, point_of
from largebatch.experiments.study.search import borders, draw_settings
from largebatch.experiments.study.settings import RangeConfig, StudyConfig, TargetConfig
from largebatch.experiments.study.study_runs import identity_of
from largebatch.run.config.reading import ConfigError, parse_config, parse_section
from largebatch.run.precision.device import Device
from tests.unit.composing import compose_run

LR = RangeConfig(key="scaling.base_lr", low=0.01, high=1.0, scale="log")
MOMENTUM = RangeConfig(key="optimizer.momentum", low=0.0, high=0.99, scale="one_minus_log")
RANGES = {"lr": LR, "momentum": MOMENTUM}


def cell(batch_size: int = 32, *, trials: int = 3, seeds: int = 2, optimizer: str = "sgd") -> Cell:
    settings = tuple(draw_settings(RANGES, trials, seed=0))
    return Cell(optimizer, batch_size, settings, tuple(range(1, 1 + seeds)), 0, 500, RANGES)


def finished(job: Job, status: str, steps: int, **more: object) -> Row:
    return {
        "id": job.name, "cell": job.cell.name, "optimizer": job.cell.optimizer,
        "batch_size": job.cell.batch_size, "number": job.number, "seed": job.seed, "setting": job.setting,
        "status": status, "steps": steps, "run": f"runs/{job.name}", **more,
    }  # fmt: skip


# --- what is tried


def test_settings_fill_every_range_evenly_on_its_own_scale():
    settings = draw_settings(RANGES, 256, seed=3)
    lr = np.log([setting["scaling.base_lr"] for setting in settings])
    one_minus = np.log([1 - setting["optimizer.momentum"] for setting in settings])
    for logs, low, high in ((lr, math.log(0.01), 0.0), (one_minus, math.log(0.01), 0.0)):
        places = (logs - low) / (high - low)
        assert places.min() >= 0
        assert places.max() <= 1
        counts = np.histogram(places, 8, (0, 1))[0]
        assert (abs(counts - 32) <= 4).all(), "a random draw would scatter by 5.3"


def test_more_trials_begin_with_the_same_ones_and_another_seed_draws_others():
    assert draw_settings(RANGES, 16, seed=0)[:5] == draw_settings(RANGES, 5, seed=0)
    assert draw_settings(RANGES, 5, seed=0) != draw_settings(RANGES, 5, seed=1)


def test_the_outer_5_percent_of_a_range_are_its_border_but_no_momentum_is_none():
    inside, low, high = 0.1, 0.01 * 100**0.049, 0.01 * 100**0.951
    assert borders({"scaling.base_lr": inside, "optimizer.momentum": 0.5}, RANGES) == ()
    assert borders({"scaling.base_lr": inside, "optimizer.momentum": 0.0}, RANGES) == ()
    assert "at the lower border" in borders({"scaling.base_lr": low, "optimizer.momentum": 0.5}, RANGES)[0]
    assert "at the upper border" in borders({"scaling.base_lr": high, "optimizer.momentum": 0.5}, RANGES)[0]
    assert "optimizer.momentum=0.989" in borders({"scaling.base_lr": inside, "optimizer.momentum": 0.989}, RANGES)[0]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"low": 1.0, "high": 0.1, "scale": "log"}, "a range goes up"),
        ({"low": 0.0, "high": 0.1, "scale": "log"}, "a logarithmic range is above 0"),
        ({"low": 0.0, "high": 1.0, "scale": "one_minus_log"}, "this scale needs 1 - value above 0"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(values: dict, error: str):
    with pytest.raises(ValidationError, match=error):
        RangeConfig(key="x", **values)


def test_a_loss_is_to_fall_and_an_accuracy_to_rise():
    loss, accuracy = (
        TargetConfig(metric="eval/val_loss", value=0.5),
        TargetConfig(metric="eval/val_accuracy", value=0.9),
    )
    assert [loss.is_reached(value) for value in (0.4, 0.5, 0.6)] == [True, True, False]
    assert [accuracy.is_reached(value) for value in (0.8, 0.9, 0.95)] == [False, True, True]
    assert (loss.direction, accuracy.direction) == ("below", "above")


# --- what comes next


def test_all_settings_are_tried_then_the_best_runs_on_every_seed_that_is_not_of_the_tuning():
    one, rows, made = cell(), [], []
    steps = iter([90, 60, 70, 65, 75])
    while (job := next_job([one], rows, ())) is not None:
        made.append((job.number, job.seed, job.beaten_at))
        rows.append(finished(job, "reached", next(steps)))
    assert made == [(0, 0, None), (1, 0, 90), (2, 0, 60), (1, 1, None), (1, 2, None)]


def test_every_point_gets_the_same_settings_and_as_many():
    cells, rows = [cell(8), cell(16), cell(8, optimizer="lars")], []
    while (job := next_job(cells, rows, ())) is not None:
        rows.append(finished(job, "reached" if job.number == 2 else "beaten", 50))
    for each in cells:
        tried = [row["setting"] for row in rows if row["cell"] == each.name and row["seed"] == 0]
        assert tried == list(each.settings)


def test_runs_that_count_wait_for_the_trials_still_running_while_other_points_go_on():
    first, second = cell(8, trials=2), cell(16, trials=2)
    trials = [Job(first, number, 0, None) for number in (0, 1)]
    job = next_job([first, second], [finished(trials[0], "reached", 50)], [trials[1].name])
    assert (job.cell.batch_size, job.number, job.is_tuning) == (16, 0, True)
    assert next_job([first], [finished(trials[0], "reached", 50)], [trials[1].name]) is None


def test_of_equal_trials_the_first_wins_in_whatever_order_they_end():
    one = cell()
    rows = [finished(Job(one, number, 0, None), "reached", 50) for number in (2, 0, 1)]
    assert best_trial(one, rows)["number"] == 0


def test_without_a_trial_that_reached_the_target_a_point_is_censored_at_the_budget():
    one = cell()
    rows = [
        finished(Job(one, number, 0, None), status, 100)
        for number, status in enumerate(("budget", "hopeless", "diverged"))
    ]
    assert next_job([one], rows, ()) is None
    point = point_of(one, rows)
    assert (point.measured.reached, point.measured.censored, point.trials) == ((), (500.0,), 3)


def test_the_steps_of_the_tuning_do_not_count_and_a_seed_that_diverges_is_censored():
    one = cell(seeds=3)
    rows = [finished(Job(one, number, 0, None), "reached", steps) for number, steps in enumerate((80, 40, 60))]
    scale = {"value": 100.0, "low": 50.0, "high": 200.0}
    final = [("reached", 55), ("diverged", 7), ("reached", 45)]
    for seed, (status, steps) in enumerate(final, start=1):
        rows.append(finished(Job(one, 1, seed, None), status, steps, noise_scale=scale))
    rows[-1]["optimizer_noise_scale"] = {"value": 30.0, "low": 20.0, "high": 40.0}
    point = point_of(one, rows)
    assert point.by_seed == (55.0, None, 45.0)
    assert point.measured.censored == (500.0,)
    assert point.measured.median == (55.0, False)
    assert point.setting == one.settings[1]
    assert (point.noise_scale.value, point.noise_scale.low) == pytest.approx((100.0, 50.0))
    assert point.optimizer_noise_scale.high == pytest.approx(40.0)
    assert point.runs == ("runs/sgd_b32_t1_s1", "runs/sgd_b32_t1_s2", "runs/sgd_b32_t1_s3")


# --- what is on disk


def ids(journal: Journal) -> list[str]:
    return [row["id"] for row in journal.rows()]


def trial(number: int) -> Row:
    return finished(Job(cell(), number, 0, None), "reached", 50)


def test_a_row_torn_by_a_kill_is_no_row_and_the_next_one_stands_on_its_own(tmp_path: Path):
    first, other, last = map(trial, range(3))
    with Journal(tmp_path, share=0, shares=1) as journal:
        journal.append(first)
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps(other).encode()[:-9])
    with Journal(tmp_path, share=0, shares=1) as journal:
        assert ids(journal) == [first["id"]]
        journal.append(last)
        assert ids(journal) == [first["id"], last["id"]]
        assert journal.passed_over == []


def test_shares_write_their_own_files_and_read_all(tmp_path: Path):
    with Journal(tmp_path, share=0, shares=2) as first, Journal(tmp_path, share=1, shares=2) as second:
        first.append(trial(0))
        second.append(trial(1))
        assert ids(first) == ids(second) == [trial(0)["id"], trial(1)["id"]]


@pytest.mark.parametrize(
    "change",
    [
        {"id": None}, {"id": "../../x"}, {"run": "../../../etc"}, {"cell": ["sgd"]}, {"number": -1}, {"number": True},
        {"number": 10**400}, {"steps": "50"}, {"steps": -1}, {"status": "won"}, {"seed": 0.5}, {"setting": []},
        {"setting": {"model._target_": "os.system"}}, {"setting": {"scaling.base_lr": math.nan}},
        {"batch_size": 0}, {"optimizer": {}}, {"noise_scale": {"value": "x"}},
    ],
)  # fmt: skip
def test_a_row_that_no_trial_has_written_is_named_and_made_again(change: dict, tmp_path: Path):
    lines = [json.dumps(trial(0) | change), "[" * 100_000, "7", json.dumps(trial(1))]
    (tmp_path / "trials.jsonl").write_text("\n".join(lines) + "\n")
    journal = Journal(tmp_path, share=0, shares=1)
    rows = journal.rows()
    assert [row["id"] for row in rows] == [trial(1)["id"]]
    (told,) = journal.passed_over
    assert f"trials.jsonl, line 1: {next(iter(change)) if change.keys() - {'id', 'run'} else ''}" in told
    job = next_job([cell()], rows, ())
    assert job is not None
    assert job.name == trial(0)["id"]


def test_records_that_are_no_regular_files_are_passed_over_and_no_study_goes_on_from_settings_of_others(tmp_path: Path):
    os.mkfifo(tmp_path / "trials.share0of2.jsonl")
    (tmp_path / "trials.share1of2.jsonl").symlink_to("/dev/zero")
    journal = Journal(tmp_path, share=0, shares=1)
    assert journal.rows() == []
    assert len(journal.passed_over) == 2
    settings = tmp_path / "study_settings.json"
    for text in (
        "[]",
        "{}",
        "[" * 100_000,
        '{"trials": 1, "trials": 9}',
        '{"trials": [], "study": {}, "optimizers": {}}',
    ):
        settings.write_text(text)
        with pytest.raises(ConfigError, match=r"study_settings\.json: .*Name another run\.dir"):
            require_same_study(tmp_path, identity())
    settings.unlink()
    os.mkfifo(settings)
    with pytest.raises(ConfigError, match="is a pipe"):
        require_same_study(tmp_path, identity())


def test_two_processes_cannot_hold_the_same_share(tmp_path: Path):
    second = Journal(tmp_path, share=0, shares=1)
    with Journal(tmp_path, share=0, shares=1), pytest.raises(ConfigError, match="another process writes to it"):
        second.__enter__()


def identity(
    *, trials: int = 4, value: float = 0.5, length: str = "3ep", optimizers: tuple[str, ...] = ("sgd",)
) -> dict:
    return {
        "trials": trials,
        "study": {"study": {"target": {"value": value}}},
        "optimizers": {name: {"length": length} for name in optimizers},
    }


def test_a_study_goes_on_that_was_begun_in_old_names(tmp_path: Path):
    before, now = identity(), identity(trials=8)
    before["optimizers"]["sgd"] |= {"batch_norm": "ghost", "observers": {"ranks": {"slow_ratio": 2}, "variance": {}}}
    now["optimizers"]["sgd"] |= {"batch_norm": "per_micro_batch", "observers": {"stragglers": {"ratio": 2}}}
    require_same_study(tmp_path / "study", before)
    require_same_study(tmp_path / "study", now)


def test_a_study_goes_on_without_the_keys_that_came_later_at_their_defaults(tmp_path: Path):
    now = identity()
    now["optimizers"]["sgd"] |= {"scaling": {"betas": "none", "new": 1}}
    defaults = {"sgd": {"scaling": {"betas": "none", "new": 1}}}
    require_same_study(tmp_path / "study", identity())
    with pytest.raises(ConfigError, match=r"scaling\.new=1: was nothing"):
        require_same_study(tmp_path / "study", now)
    require_same_study(tmp_path / "study", now, defaults)
    require_same_study(tmp_path / "other", identity())
    now["optimizers"]["sgd"]["scaling"]["betas"] = "half_life"
    with pytest.raises(ConfigError, match=r'betas="half_life": was nothing .*study\.joint_scaling=false') as caught:
        require_same_study(tmp_path / "other", now, defaults)
    assert len(caught.value.errors) == 1


def test_what_a_study_does_not_search_follows_the_batch():
    def joint(*overrides: str, **ranges: RangeConfig) -> tuple[Any, Any]:
        config = compose_run("scaling=none", *overrides)
        found, how = jointly_scaled(config, ranges)
        return parse_config(found).scaling, how

    rate = RangeConfig(key="scaling.base_lr", low=0.1, high=1.0, scale="log")
    momentum = RangeConfig(key="optimizer.momentum", low=0.1, high=0.9, scale="linear")
    scaling, how = joint("optimizer=adamw", "clip_norm=1.0", lr=rate)
    assert (scaling.rule, scaling.betas, scaling.eps, scaling.clip_norm) == ("none", "half_life", "sde", "noise")
    assert scaling.weight_decay == "none"
    assert "weight_decay stays" in str(how)
    scaling, how = joint("optimizer=sgd", lr=rate, momentum=momentum)
    assert scaling.following == {}
    assert "momentum is searched" in str(how)
    assert joint("optimizer=sgd", lr=rate)[0].following == {"momentum": "half_life"}
    assert joint("optimizer=sgd", "optimizer.momentum=0.0", lr=rate)[0].following == {}
    assert joint("optimizer=adamw", "scaling.betas=[none,half_life]", lr=rate)[0].betas == ["none", "half_life"]


def test_a_study_has_one_number_format_and_goes_on_without_keys_of_speed(monkeypatch: pytest.MonkeyPatch):
    study = parse_section(compose_run("experiment=study/digits", config_name="study"), "study", StudyConfig)

    def precision(device: Device, *overrides: str) -> dict[str, Any]:
        monkeypatch.setattr(Device, "own", lambda: device)
        found: dict[str, Any] = identity_of({"sgd": compose_run(*overrides)}, study)["optimizers"]["sgd"]["precision"]
        return found

    of_cpu = {
        "compute": "fp32", "tf32": None, "compile": False, "activation_checkpointing": False,
        "gradient_compression": "none",
    }  # fmt: skip
    gpu = Device("H100", (9, 0), has_bf16=True)
    assert precision(Device()) == of_cpu, "as studies recorded it before there was precision=auto"
    assert precision(gpu) == of_cpu | {"compute": "bf16"}
    assert precision(gpu, "precision=fp32", "precision.channels_last=true", "precision.bucket_mb=100") == of_cpu


def test_a_study_goes_on_with_more_trials_and_optimizers_but_not_with_anything_else_changed(tmp_path: Path):
    folder = tmp_path / "study"
    require_same_study(folder, identity())
    require_same_study(folder, identity(trials=8, optimizers=("sgd", "lars")))
    require_same_study(folder, identity(trials=8, optimizers=("lars",)))
    with pytest.raises(ConfigError) as caught:
        require_same_study(folder, identity(trials=4, value=0.4, length="5ep"))
    length, target, trials = sorted(caught.value.errors)
    assert length.startswith(f'length="5ep": was "3ep" when {folder} was begun')
    assert target.startswith("study.target.value=0.4: was 0.5")
    assert trials.startswith(f"study.trials=4: {folder} was begun with 8")


def test_a_folder_with_something_else_is_no_study(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds something that is no study"):
        require_same_study(tmp_path, identity())

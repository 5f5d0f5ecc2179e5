"""The numeric guard: its decisions against numpy, and what a bad batch leaves behind in a run: nothing."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.cli.composition.composing import compose_config
from largebatch.diagnostics.outliers import FEWEST_VALUES, RecentValues, upper_limit
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_valid, save_checkpoint
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError
from largebatch.run.train_quietly import Trained, train_quietly
from largebatch.training.guard import Guard
from tests.unit.data.faulty_data import BATCH_NORM, SKIP, SMALL, at_steps, faulty


def reference_verdicts(series: np.ndarray, *, window: int, threshold: float) -> list[bool]:
    """Whether each value is bad, by the definition in plain numpy."""
    good: list[float] = []
    bad = []
    for value in series:
        recent = np.array(good[-window:])
        limit = np.inf
        if len(recent) >= FEWEST_VALUES:
            median = np.median(recent)
            spread = max(np.median(np.abs(recent - median)), 0.01 * abs(median))
            limit = median + threshold * spread if spread > 0 else np.inf
        bad.append(bool(not np.isfinite(value) or value > limit))
        if not bad[-1]:
            good.append(value)
    return bad


def verdicts(losses: Any, norms: Any = None, *, window: int = 30, threshold: float | None = 5.0) -> list[bool]:
    guard = Guard("log", window=window, threshold=threshold, most_in_a_row=1)
    norms = np.ones(len(losses)) if norms is None else norms
    return [guard.judge(float(loss), float(norm)).is_bad for loss, norm in zip(losses, norms, strict=True)]


def noisy_series(seed: int) -> np.ndarray:
    """Falls like a loss, with heavy tails, ties, spikes and values that are none."""
    random = np.random.default_rng(seed)
    series = 2 * np.exp(-np.arange(300) / 80) + 0.05 * random.standard_t(2, 300)
    series[random.integers(0, 300, 30)] = np.round(series[random.integers(0, 300, 30)], 1)
    series[random.integers(0, 300, 6)] *= 1e4
    series[random.integers(0, 300, 6)] = [np.nan, np.inf, -np.inf, np.nan, np.inf, np.nan]
    return series


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("window", "threshold"), [(20, 3.0), (21, 5.0), (200, 10.0)])
def test_every_decision_is_that_of_numpys_medians(seed: int, window: int, threshold: float):
    series = noisy_series(seed)
    expected = reference_verdicts(series, window=window, threshold=threshold)
    assert 8 < sum(expected) < 150
    assert verdicts(series, window=window, threshold=threshold) == expected
    assert verdicts(np.ones(300), series, window=window, threshold=threshold) == expected, "of the norm alike"


def test_without_enough_values_only_what_is_not_finite_is_bad():
    series = [1e9 * (-1) ** step for step in range(FEWEST_VALUES)]
    assert not any(verdicts(series))
    assert verdicts([*series[: FEWEST_VALUES - 1], math.nan, 1e300]) == [*[False] * (FEWEST_VALUES - 1), True, False]


def test_a_constant_series_lets_rounding_pass_and_stops_a_spike():
    assert verdicts([2.0] * 30 + [np.nextafter(2.0, 3.0), 2.1, 2.11, 2e4]) == [*[False] * 32, True, True]
    assert verdicts([0.0] * 30 + [1e4]) == [False] * 31, "zeros have no scale"


def test_a_value_on_the_limit_and_any_low_one_are_good():
    values = [1.0, 2.0, 3.0, 4.0, 100.0] * 6
    assert verdicts([*values[:20], 8.0]) == [False] * 21
    series = RecentValues(window=20, threshold=5.0)
    series.load(values)
    assert [series.is_outlier(value) for value in (-1e300, 8.0, np.nextafter(8.0, 9.0))] == [False, False, True]


def test_spikes_do_not_move_the_limit():
    guard = Guard("log", window=25, threshold=5.0, most_in_a_row=1)
    for loss in np.linspace(2, 1, 40):
        guard.judge(loss, 1.0)
    before = guard.judge(1.0, 1.0).loss_limit
    limit = guard.judge(1e4, 1.0).loss_limit
    assert [guard.judge(bad, 1.0).loss_limit for bad in (math.nan, 1e4, 1e9, math.inf)] == [limit] * 4
    assert limit <= before


def test_without_a_threshold_only_what_is_not_finite_is_bad():
    assert verdicts([1.0] * 40 + [1e9, math.inf, 1.0], threshold=None) == [*[False] * 41, True, False]


def test_a_guard_that_has_saved_its_state_decides_as_the_one_that_has_not():
    series = noisy_series(0).tolist()
    whole = Guard("skip", window=30, threshold=4.0, most_in_a_row=3)
    expected = [whole.judge(loss, 1.0) for loss in series]
    first = Guard("skip", window=30, threshold=4.0, most_in_a_row=3)
    found = [first.judge(loss, 1.0) for loss in series[:150]]
    second = Guard("skip", window=30, threshold=4.0, most_in_a_row=3)
    second.load(json.loads(json.dumps(first.state())))
    found += [second.judge(loss, 1.0) for loss in series[150:]]
    assert list(map(str, found)) == list(map(str, expected)), "texts, as NaN is not equal to NaN"
    assert second.state() == whole.state()


def test_it_gives_up_after_that_many_bad_steps_without_a_good_one():
    guard = Guard("skip", window=20, threshold=None, most_in_a_row=3)
    seen = []
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan):
        guard.judge(loss, 1.0)
        seen.append(guard.gives_up)
    assert seen == [False] * 5 + [True]
    watcher = Guard("log", window=20, threshold=None, most_in_a_row=1)
    watcher.judge(math.nan, 1.0)
    assert not watcher.gives_up


def test_an_overflow_of_the_loss_scale_is_neither_good_nor_bad():
    guard = Guard("skip", window=20, threshold=5.0, most_in_a_row=1)
    decision = guard.judge(1.0, math.inf, scales_loss=True)
    assert (decision.action, decision.is_overflow, guard.gives_up) == ("none", True, False)
    assert guard.state()["losses"] == []
    assert guard.judge(math.nan, math.nan, scales_loss=True).action == "skip", (
        "a loss that is not finite is no overflow"
    )
    assert (guard.counts.overflows, guard.counts.skipped) == (1, 1)


@pytest.mark.fault(25, "overflow under fp16", "scaler state restored", missing="resuming the scaler itself needs a GPU")
def test_a_skipped_step_leaves_the_loss_scale_and_the_next_step_is_unscaled_once():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with Runtime.open() as runtime:
        runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        runtime.backward((weight * math.nan).sum())
        runtime.grad_norm(optimizer, None)
        runtime.step(optimizer, leaves_out=True)
        assert runtime.loss_scale_state()["scale"] == 2.0**10
        optimizer.zero_grad()
        runtime.backward((weight * 3).sum())
        assert float(runtime.grad_norm(optimizer, None)) == pytest.approx(3 * math.sqrt(2))
        runtime.step(optimizer)
        assert weight.tolist() == [-2.0, -2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 19}, "window=19"), ({"threshold": 0.0}, "threshold=0"), ({"most_in_a_row": 0}, "most_in_a_row=0")],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Guard("skip", **({"window": 20, "threshold": 5.0, "most_in_a_row": 1} | options))


def test_the_limit_of_fewer_values_than_needed_is_infinite():
    assert upper_limit([1.0] * (FEWEST_VALUES - 1), 5.0) == math.inf


def ledger(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "ledger.jsonl")


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_a_bad_step_a_guarded_run_is_bit_for_bit_an_unguarded_one(tmp_path: Path):
    off = train_quietly(compose_config(SMALL), tmp_path / "off")
    guarded = train_quietly(compose_config([*SMALL, *SKIP, "guard.threshold=1e6"]), tmp_path / "guarded")
    assert guarded.summary["guard/bad"] == 0
    assert_same(weights(off), weights(guarded))
    assert ledger(tmp_path / "off") == ledger(tmp_path / "guarded")


def test_a_batch_that_is_not_a_number_costs_its_step_alone(tmp_path: Path):
    factors = at_steps({5: math.nan, 6: math.inf, 20: math.nan})
    trained = train_quietly(faulty(*SKIP, *BATCH_NORM, "guard.threshold=null", factors=factors), tmp_path / "run")
    assert (trained.status, trained.summary["guard/bad"], trained.summary["guard/skipped"]) == ("finished", 3, 3)
    rows = ledger(tmp_path / "run")
    assert {row["step"]: row["guard"] for row in rows if "guard" in row} == {5: "skip", 6: "skip", 20: "skip"}
    same = [row["step"] for before, row in itertools.pairwise(rows) if row["parameters"] == before["parameters"]]
    assert same == [5, 6, 20]
    assert all(value.isfinite().all() for value in weights(trained).values())
    assert trained.summary["eval/val_loss"] < 3, "running statistics are those of the good batches"
    told = [row for row in trained.rows if "guard/loss" in row]
    assert [(row["step"], row["guard/skipped"]) for row in told] == [(5, 1), (6, 2), (20, 3)]
    train_quietly(compose_config([*SMALL, *BATCH_NORM]), tmp_path / "clean")
    for key in ("samples_seen", "ids", "lr"):
        assert [row[key] for row in rows] == [row[key] for row in ledger(tmp_path / "clean")]


@pytest.mark.fault(23)
def test_weights_buffers_and_momentum_after_a_skipped_step_are_those_before_it(tmp_path: Path):
    asked = (*SKIP, *BATCH_NORM)
    seven = train_quietly(faulty(*asked, factors=at_steps({8: math.nan})), tmp_path / "7", stop=after(7))
    eight = train_quietly(faulty(*asked, factors=at_steps({8: math.nan})), tmp_path / "8", stop=after(8))
    assert (seven.summary["steps"], eight.summary["steps"], eight.summary["guard/skipped"]) == (7, 8, 1)
    assert_same(weights(seven), weights(eight))
    states = [saved(tmp_path / name).tensors["optimizer"] for name in ("7", "8")]
    assert states[0]
    assert_same(*states)


def saved(folder: Path) -> Checkpoint:
    checkpoint, _ = newest_valid(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def after(step: int) -> Any:
    """Asks for a stop so that `step` steps are done: it is asked once a step, and the loop agrees one step late."""
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) >= step - 1

    return stop


@pytest.mark.fault(24, "loss spike", "log, skip or roll back; resume decides alike")
def test_a_spike_is_skipped_by_the_threshold_and_the_limit_stays(tmp_path: Path):
    trained = train_quietly(faulty(*SKIP, "guard.threshold=20", factors=at_steps({30: 1e4, 31: 1e4})), tmp_path)
    first, second = [row for row in trained.rows if "guard/loss" in row]
    assert (first["step"], second["step"], trained.summary["guard/skipped"]) == (30, 31, 2)
    assert first["guard/loss"] > 5 * first["guard/loss_limit"]
    for name in ("guard/loss_limit", "guard/grad_norm_limit"):
        assert first[name] == second[name]
    state = saved(tmp_path).values["guard"]
    assert max(state["losses"]) < first["guard/loss_limit"]


def test_log_tells_of_bad_steps_and_trains_as_without_a_guard(tmp_path: Path):
    factors = at_steps({30: 1e4})
    told = train_quietly(faulty("guard.policy=log", "guard.window=20", factors=factors), tmp_path / "log")
    off = train_quietly(faulty(factors=factors), tmp_path / "off")
    assert told.summary["guard/bad"] >= 1
    assert told.summary["guard/skipped"] == 0
    assert_same(weights(off), weights(told))
    broken = train_quietly(faulty("guard.policy=log", factors=at_steps({5: math.nan})), tmp_path / "nan")
    assert broken.status == "diverged"


def test_too_many_bad_steps_in_a_row_end_the_run_as_diverged_and_it_is_not_saved(tmp_path: Path):
    factors = at_steps(dict.fromkeys((2, 3, 5, 6, 7, 8), math.nan))
    trained = train_quietly(faulty(*SKIP, "guard.most_in_a_row=3", factors=factors), tmp_path)
    assert (trained.status, trained.summary["steps"], trained.summary["guard/skipped"]) == ("diverged", 7, 5)
    assert newest_valid(tmp_path / "checkpoints")[0] is None


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "overrides",
    [(), BATCH_NORM, ("optimizer=adamw",), ("optimizer=lars",), ("optimizer=lamb",)],
    ids=["sgd", "batch norm", "adamw", "lars", "lamb"],
)
@pytest.mark.parametrize("background", ["false", "true"])
def test_a_rollback_goes_back_to_the_newest_checkpoint_and_on_behind_the_bad_batch(
    overrides: tuple[str, ...], background: str, tmp_path: Path
):
    """What follows is what a run of its own makes of that checkpoint at that position."""
    asked = (
        *overrides,
        "guard.policy=rollback",
        "observers.checkpoint.every=10steps",
        "observers.checkpoint.keep=9",
        f"observers.checkpoint.background={background}",
        "length=15steps",
    )
    trained = train_quietly(faulty(*asked, factors=at_steps({12: math.nan})), tmp_path / "run")
    assert (trained.status, trained.summary["guard/rolled_back"]) == ("finished", 1)
    rows = ledger(tmp_path / "run")
    assert {row["step"]: row["guard"] for row in rows if "guard" in row} == {12: "rollback"}
    assert rows[11]["parameters"] == rows[9]["parameters"] != rows[10]["parameters"]

    at_ten = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000010")
    moved = at_ten.values | {"step": 12, "samples_seen": 12 * 32}
    save_checkpoint(tmp_path / "own" / "checkpoints", step=12, tensors=at_ten.tensors, values=moved, keep=1)
    own = train_quietly(faulty(*asked, "resume=auto", factors=at_steps({12: math.nan})), tmp_path / "own")
    assert ledger(tmp_path / "own") == rows[12:]
    assert_same(weights(own), weights(trained))


def test_before_there_is_a_checkpoint_a_rollback_skips(tmp_path: Path):
    asked = ("guard.policy=rollback", "observers.checkpoint.every=10steps", "length=4steps")
    trained = train_quietly(faulty(*asked, factors=at_steps({3: math.nan})), tmp_path)
    assert [row["guard"] for row in ledger(tmp_path) if "guard" in row] == ["skip"]
    assert trained.summary["guard/rolled_back"] == 0


def test_checkpoints_of_later_steps_are_not_gone_back_to(tmp_path: Path):
    """They are of a process that went on from the same checkpoint before this one."""
    asked = ("guard.policy=rollback", "observers.checkpoint.every=5steps", "observers.checkpoint.keep=9")
    train_quietly(faulty(*asked, "length=20steps", factors={}), tmp_path)
    going_on = ("length=20steps", f"resume={tmp_path}/checkpoints/step_00000010")
    trained = train_quietly(faulty(*asked, *going_on, factors=at_steps({13: math.nan})), tmp_path)
    assert trained.summary["guard/rolled_back"] == 1
    rows = {row["step"]: row for row in ledger(tmp_path)}
    assert rows[13]["guard"] == "rollback"
    assert rows[13]["parameters"] == rows[10]["parameters"]


def test_a_run_that_was_resumed_into_another_folder_goes_back_to_where_it_came_from(tmp_path: Path):
    asked = ("guard.policy=rollback", "observers.checkpoint.every=5steps", "length=8steps")
    factors = at_steps({7: math.nan})
    train_quietly(faulty(*asked, factors=factors), tmp_path / "first", stop=after(5))
    rows = {row["step"]: row for row in ledger(tmp_path / "first")}
    going_on = (f"resume={tmp_path}/first/checkpoints/step_00000005",)
    train_quietly(faulty(*asked, *going_on, factors=factors), tmp_path / "second")
    (back,) = [row for row in ledger(tmp_path / "second") if "guard" in row]
    assert (back["step"], back["guard"], back["parameters"]) == (7, "rollback", rows[5]["parameters"])

    def gone() -> bool:
        shutil.rmtree(tmp_path / "first", ignore_errors=True)
        return False

    train_quietly(faulty(*asked, *going_on, factors=factors), tmp_path / "third", stop=gone)
    assert [row["guard"] for row in ledger(tmp_path / "third") if "guard" in row] == ["skip"]


def test_a_rollback_without_checkpoints_on_the_way_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"guard\.policy=rollback: .*observers\.checkpoint\.every"):
        train_quietly(compose_config([*SMALL, "guard.policy=rollback"]), tmp_path / "x")


@pytest.mark.fault(24)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_resumed_run_decides_as_an_uninterrupted_one(policy: str, tmp_path: Path):
    """After the end of the first part one batch is bad by the limit, which the second part only knows from there."""
    # Turned round: a huge sample whose class is guessed right costs nothing.
    factors = at_steps({9: math.nan, 27: -1e4})
    asked = (f"guard.policy={policy}", "guard.window=20", "guard.threshold=20", "observers.checkpoint.every=7steps")
    whole = train_quietly(faulty(*asked, factors=factors), tmp_path / "whole")
    part = train_quietly(faulty(*asked, factors=factors), tmp_path / "parts", stop=after(24))
    assert (part.status, part.summary["steps"]) == ("stopped", 24)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_00000024")  # as if it had been killed there
    resumed = train_quietly(faulty(*asked, "resume=auto", factors=factors), tmp_path / "parts")
    assert resumed.status == "finished"
    marks = {row["step"]: row["guard"] for row in ledger(tmp_path / "whole") if "guard" in row}
    assert marks == {9: policy, 27: policy}
    assert ledger(tmp_path / "whole") == ledger(tmp_path / "parts")
    assert_same(weights(whole), weights(resumed))
    counts = [{key: one.summary[key] for key in one.summary if "guard/" in key} for one in (whole, resumed)]
    assert counts[0] == counts[1]


def test_a_run_from_before_there_was_a_guard_goes_on_with_one_if_that_is_permitted(tmp_path: Path):
    train_quietly(compose_config(SMALL), tmp_path, stop=after(5))
    assert "guard" not in saved(tmp_path).values
    with pytest.raises(CheckpointError, match=r"guard was None, now .*resume_allow=\[guard\]"):
        train_quietly(compose_config([*SMALL, *SKIP, "resume=auto"]), tmp_path)
    allowed = compose_config([*SMALL, *SKIP, "resume=auto", "resume_allow=[guard]"])
    assert train_quietly(allowed, tmp_path).status == "finished"

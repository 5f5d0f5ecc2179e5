"""Early stopping and the best checkpoint, by any key of the rows, decided alike on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from largebatch import Observer, Run, StepReport
from largebatch.records.checkpoint import newest_valid
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_early_stopping"
SMALL = ("data=synthetic", "model=linear", "batch.total=32", "length=20steps", "schedule.warmup=0ep",
         "schedule=constant", "observers.evaluation.every=1steps", "observers.metrics.every=2")  # fmt: skip
EARLY = ("observers.early_stopping.metric=eval/val_loss", "observers.early_stopping.patience=96samples")
VALUES = [5.0, 3.0, 4.0, 2.5, 2.4, 2.45, 2.6, 2.41, 2.39, 2.5, 2.6, 2.7, 2.8, 2.9]


class Planted(Observer):
    """Logs numbers that are known, from the planned step on; only rank 0's differ from nonsense."""

    def after_step(self, run: Run, report: StepReport) -> None:
        value = VALUES[min(report.step, len(VALUES)) - 1]
        run.log({"mine/cost": value if run.runtime.is_main else -report.step})


def trained(folder: str, *overrides: str, stop_after: int | None = None) -> tuple[str, dict[str, Any]]:
    calls = [0]

    def stop() -> bool:
        calls[0] += 1
        return calls[0] == stop_after

    done = train_quietly(compose_run(*SMALL, *overrides), folder, stop=stop)
    return done.status, done.summary


def ends_at(values: dict[int, float], patience: int, min_delta: float = 0.0) -> int | None:
    """The first step at which the best value is `patience` samples of 32 per step old."""
    best, best_at = None, 0
    for step, value in sorted(values.items()):
        if best is None or best - value > min_delta:
            best, best_at = value, step
        elif 32 * (step - best_at) >= patience:
            return step
    return None


def losses(folder: Path, key: str = "eval/val_loss") -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def test_a_run_without_better_values_is_finished_on_every_rank_and_stays_so(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    """The rate is so high that the loss soon gets worse."""
    early = (*EARLY, "scaling.base_lr=3")
    trained(str(tmp_path / "whole"), "scaling.base_lr=3")
    expected = ends_at(losses(tmp_path / "whole"), 96)
    assert expected is not None
    assert 3 < expected < 20

    out = str(tmp_path / "early")
    for status, summary in ranks(3).run(trained, out, *early):
        assert (status, summary["steps"]) == ("finished", expected)
        assert summary["end_reason"].startswith("stopped early: no eval/val_loss better than ")
    assert (tmp_path / "early" / "checkpoints" / f"step_{expected:08d}").exists()

    status, summary = trained(out, *early, "resume=auto")
    assert (status, summary["steps"]) == ("finished", expected), "resumed, it is over at once"
    assert max(losses(tmp_path / "early")) == expected, "and adds no row"
    status, summary = trained(out, *early, "resume=auto", "observers.early_stopping.patience=500samples")
    assert summary["steps"] > expected, "more patience goes on"


def test_what_it_has_seen_survives_a_stop_on_another_number_of_ranks(ranks: Callable[[int], RankPool], tmp_path: Path):
    early = (*EARLY, "scaling.base_lr=3")
    _, whole = trained(str(tmp_path / "whole"), *early)
    status, _ = ranks(2).run(trained, str(tmp_path / "parts"), *early, stop_after=whole["steps"] - 3)[0]
    assert status == "stopped"
    _, parts = trained(str(tmp_path / "parts"), *early, "resume=auto")
    assert (parts["steps"], parts["end_reason"][:60]) == (whole["steps"], whole["end_reason"][:60])


@pytest.mark.parametrize("min_delta", [0.0, 0.2])
def test_a_key_of_an_own_observer_decides_by_rank_0_in_steps_with_a_row(
    ranks: Callable[[int], RankPool], tmp_path: Path, min_delta: float
):
    asked = (f"+observers.mine._target_={HERE}.Planted", "observers.early_stopping.metric=mine/cost",
             "observers.early_stopping.mode=min", "observers.early_stopping.patience=128samples",
             f"observers.early_stopping.min_delta={min_delta}", "observers.checkpoint.best_by=mine/cost",
             "observers.checkpoint.best_mode=min", "observers.evaluation.every=null")  # fmt: skip
    seen = {step: VALUES[step - 1] for step in range(2, len(VALUES) + 1, 2)}
    expected = ends_at(seen, 128, min_delta)
    for status, summary in ranks(2).run(trained, str(tmp_path), *asked):
        assert (status, summary["steps"]) == ("finished", expected)
    best = min((value, step) for step, value in seen.items() if step <= (expected or 0))
    kept, _ = newest_valid(tmp_path / "checkpoints" / "best")
    assert kept is not None
    assert (kept.values["best"]["mine/cost"], kept.step) == best


def test_the_best_by_a_metric_is_the_largest(tmp_path: Path):
    trained(
        str(tmp_path),
        "metric=top5",
        "metrics.top5.k=2",
        "observers.checkpoint.best_by=eval/val_top5",
        "scaling.base_lr=3",
    )
    values = losses(tmp_path, "eval/val_top5")
    assert len(set(values.values())) > 3
    kept, _ = newest_valid(tmp_path / "checkpoints" / "best")
    assert kept is not None
    best = max(values.values())
    assert kept.values["best"]["eval/val_top5"] == best
    assert kept.step == min(step for step, one in values.items() if one == best)


BEST = "observers.checkpoint.best_by="


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((f"{BEST}eval/val_acuracy",), "Did you mean 'eval/val_accuracy'?"),
        ((f"{BEST}eval/val_top5",), "there is no metric top5. Choose one with metric=NAME."),
        ((f"{BEST}val_loss",), "no row has this key"),
        ((f"{BEST}noise_scale/b_simple",), "is not measured in this run. Set observers.noise_scale.every."),
        ((f"{BEST}train/grad_norm",), "Give observers.checkpoint.best_mode=max or min."),
        ((f"{BEST}eval/val_loss", "observers.checkpoint.best_mode=max"), "a smaller eval/val_loss is better"),
        (("observers.checkpoint.best_mode=max",), "has no effect without observers.checkpoint.best_by"),
        (("observers.early_stopping.metric=eval/val_loss",), "nothing says how long to wait"),
        (("observers.early_stopping.patience=3ep",), "has no effect without a metric"),
        ((*EARLY, "observers.early_stopping.patience=3"), "a length is a number and a unit"),
    ],
)
def test_a_key_that_cannot_decide_is_refused_before_the_run(overrides: tuple[str, ...], expected: str):
    with pytest.raises(ConfigError) as raised:
        prepare(compose_run(*SMALL, *overrides), {})
    assert expected in str(raised.value)


def test_a_best_key_that_no_row_had_is_told_at_the_end(tmp_path: Path):
    _, _ = trained(
        str(tmp_path), "data=linear_regression", f"{BEST}eval/val_accuracy", "length=2steps", "scaling.base_lr=0.01"
    )
    written = json.loads((tmp_path / "summary.json").read_text())
    assert any("no row had a number eval/val_accuracy" in line for line in written["problems"])

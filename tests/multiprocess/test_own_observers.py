"""Observers that a config names by `_target_`: rows, state and end of the run, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from largebatch import Measures, Observer, Run, Step, StepReport
from largebatch.records.checkpoint import load_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from largebatch.training.raised import RunFailedError
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

SMALL = ("model=mlp", "model.hidden=[8]", "data=synthetic", "batch.total=20", "length=8steps", "schedule.warmup=0ep",
         "schedule=constant", "observers.metrics.every=2", "observers.evaluation.every=null")  # fmt: skip
HERE = "tests.multiprocess.test_own_observers"


class Drift(Observer):
    """Distance of the weights from those at the start, and the mean of all losses so far: both need a memory."""

    def __init__(self, every: int = 1, ends_at: int | None = None, *, scale: float = 1.0) -> None:
        self.every, self.ends_at, self.scale = every, ends_at, scale
        self.start: dict[str, Tensor] = {}
        self.losses: list[float] = []

    def on_start(self, run: Run) -> None:
        if not self.start:
            self.start = {name: one.detach().clone() for name, one in run.module.named_parameters()}

    def asks(self, step: Step) -> Measures:
        return Measures.LOSS if step.is_due(self.every) else Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> str | None:
        if report.taken.is_due(self.every):
            self.losses.append(report.mean_loss)
            sq = sum((one.detach() - self.start[name]).square().sum() for name, one in run.module.named_parameters())
            mean = sum(self.losses) / len(self.losses)
            run.log({"mine/drift": self.scale * torch.as_tensor(sq).sqrt(), "mine/mean_loss": mean})
        return f"step {report.step} is enough" if report.step == self.ends_at else None

    def state_dict(self) -> dict[str, Any]:
        return {"start": dict(self.start), "losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.losses = state["start"], state["losses"]


class NoObserver:
    pass


class OnlyHalf(Observer):
    def state_dict(self) -> dict[str, Any]:
        return {}


class OddState(OnlyHalf):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": {1, 2}}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TakesAName(Observer):
    def after_step(self, run: Run, report: StepReport) -> None:
        run.log({"eval/val_loss": 1.0})


def trained(folder: str, *overrides: str, stop_after: int | None = None) -> tuple[str, dict[str, Any], list[Any]]:
    steps = [0]

    def stop() -> bool:
        steps[0] += 1
        return steps[0] == stop_after

    done = train_quietly(compose_run(*SMALL, *overrides), folder, stop=stop)
    keys = ("step", "mine/drift", "mine/mean_loss", "train/loss")
    return done.status, done.summary, [{key: row[key] for key in keys if key in row} for row in done.rows]


def drifts(rows: list[Any]) -> list[tuple[int, float, float]]:
    return [(row["step"], row["mine/drift"], row["mine/mean_loss"]) for row in rows if "mine/drift" in row]


def test_rows_and_state_of_an_own_observer_survive_a_stop_and_another_number_of_ranks(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    mine = (f"+observers.mine._target_={HERE}.Drift", "+observers.mine.scale=2.0")
    _, _, rows = ranks(3).run(trained, str(tmp_path / "whole"), *mine)[0]
    whole = drifts(rows)
    assert [step for step, _, _ in whole] == list(range(1, 9)), "rank 0 alone writes"
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert whole[1][2] == pytest.approx((whole[0][2] + losses[2]) / 2, rel=1e-6)

    parts = str(tmp_path / "parts")
    status, summary, _ = ranks(3).run(trained, parts, *mine, stop_after=3)[0]
    assert status == "stopped"
    assert summary["steps"] < 8
    _, _, rows = ranks(2).run(trained, parts, *mine, "resume=auto")[1]
    for (step, drift, mean), (_, expected, expected_mean) in zip(drifts(rows), whole, strict=True):
        assert (drift, mean) == pytest.approx((expected, expected_mean), rel=1e-5), step


def test_an_own_observer_changes_no_weight_and_may_come_and_go_at_a_resume(tmp_path: Path):
    mine, plain, out = f"+observers.mine._target_={HERE}.Drift", tmp_path / "plain", tmp_path / "out"
    trained(str(plain))
    trained(str(out), mine, stop_after=3)
    status, _, rows = trained(str(out), f"+observers.other._target_={HERE}.Drift", "resume=auto")
    assert (status, drifts(rows)[-1][0]) == ("finished", 8)
    of_plain, of_out = (load_checkpoint(one / "checkpoints" / "step_00000008") for one in (plain, out))
    assert all(torch.equal(one, of_out.tensors["model"][name]) for name, one in of_plain.tensors["model"].items())


def test_a_reason_finishes_the_run_there_on_every_rank(ranks: Callable[[int], RankPool], tmp_path: Path):
    mine = (f"+observers.mine._target_={HERE}.Drift", "+observers.mine.ends_at=5")
    for status, summary, _ in ranks(2).run(trained, str(tmp_path), *mine):
        assert (status, summary["steps"], summary["end_reason"]) == ("finished", 5, "step 5 is enough")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["status"] == "finished"
    assert written["evaluated_after_step"] == 5
    assert Path(written["checkpoint"]).name == "step_00000005"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((f"+observers.mine._target_={HERE}.Nowhere",), "observers.mine._target_"),
        ((f"+observers.mine._target_={HERE}.NoObserver",), "a NoObserver has no on_start and no asks"),
        ((f"+observers.mine._target_={HERE}.Drift", "+observers.mine.evry=3"), "Did you mean 'every'?"),
        ((f"+observers.mine._target_={HERE}.OnlyHalf",), "has state_dict and no load_state_dict"),
        ((f"+observers.mine._target_={HERE}.OddState",), "values['state']['seen'] is a set"),
        (("+observers.evalution.every=1ep",), "Did you mean 'observers.evaluation'?"),
        (("+observers.mine.every=3",), "One of your own is observers.mine._target_=MODULE.CLASS."),
    ],
)
def test_what_is_no_observer_is_refused_before_the_run(overrides: tuple[str, ...], expected: str):
    with pytest.raises(ConfigError) as raised:
        prepare(OmegaConf.create(compose_run(*SMALL, *overrides)), {})
    assert expected in str(raised.value)


def test_a_key_of_largebatch_is_refused_in_a_row(tmp_path: Path):
    with pytest.raises(RunFailedError, match="eval/val_loss is a key of largebatch"):
        trained(str(tmp_path), f"+observers.mine._target_={HERE}.TakesAName")

"""What follows the batch through a ramp, on any number of ranks, and through stops on other numbers of ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largebatch.records.trackers import read_metrics
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.loop import Observer, Run, train
from largebatch.training.step_report import StepReport
from tests.unit.composing import compose_run

pytestmark = pytest.mark.quick

COMMON = (
    "data=digits", "model=mlp", "model.hidden=[8]", "logger=none", "observers.progress=false", "data.limit=96",
    "precision=fp64", "batch.total=16", "batch.ramp.milestones=[60samples]", "batch.ramp.totals=[43]",
    "length=280samples", "schedule.warmup=0ep", "observers.evaluation.every=null", "clip_norm=3.0",
    "scaling.clip_norm=noise", "scaling.base_batch_size=32", "schedule=constant", "resume=auto",
    "observers.metrics.every=1",
)  # fmt: skip
FOLLOWERS = ("momentum", "beta1", "beta2", "eps", "weight_decay")
RUNS = {  # four steps of 16, five of 43
    "adamw": ("optimizer=adamw", "scaling=sde_timescale", "scaling.clip_norm=noise", "scaling.base_batch_size=32"),
    "sgd": ("optimizer=sgd", "scaling=linear_half_life", "scaling.clip_norm=noise", "scaling.base_batch_size=32"),
}


class Watcher(Observer):
    """What the optimizer stepped with; ends the run after a step."""

    def __init__(self, last: int) -> None:
        self.last, self.seen = last, list[dict[str, Any]]()

    def after_step(self, run: Run, report: StepReport) -> bool:
        group = run.optimizer.param_groups[0]
        state = next(iter(run.optimizer.state.values()))
        row = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "momentum") if key in group}
        self.seen.append(row | {"count": float(state.get("step", 0))})
        return report.step == self.last


def part(name: str, folder: Path, last: int) -> tuple[list[dict[str, Any]], list[float]]:
    """Train up to a step; what each step had, and the weights."""
    config = compose_run(*COMMON, *RUNS[name], f"run.dir={folder}")
    with open_run(prepare(config, os.environ, joins=True), lambda: False, ()) as opened:
        watcher = Watcher(last)
        opened.run = replace(opened.run, observers=[*opened.run.observers, watcher])
        train(opened.run)
        weights = [float(value) for one in opened.run.module.parameters() for value in one.detach().flatten()]
        return watcher.seen, weights


def largest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_values_follow_the_batch_and_stops_on_other_ranks_change_nothing(name: str, ranks: Any, tmp_path: Path):
    ((whole, weights),) = ranks(1).run(part, name, tmp_path / "whole", 9)
    small, large = whole[0], whole[-1]
    assert whole[:4] == [small | {"count": one["count"]} for one in whole[:4]]
    if name == "adamw":
        assert large["betas"] == pytest.approx((0.9 ** (43 / 32), 0.999 ** (43 / 32)))
        assert small["eps"] == pytest.approx(1e-8 * 2**0.5)
        assert (1 - large["lr"] * large["weight_decay"]) == pytest.approx((1 - 0.05 * 1e-3) ** (43 / 32), rel=1e-14)
        # Four steps of 16 count as 64 / 43 of a step.
        assert [one["count"] for one in whole] == pytest.approx([1, 2, 3, 4, *(64 / 43 + n for n in range(1, 6))])
    else:
        assert (small["momentum"], large["momentum"]) == pytest.approx((0.9**0.5, 0.9 ** (43 / 32)))
        sums = [one["lr"] / (1 - one["momentum"]) for one in (small, large)]
        assert sums == pytest.approx([0.05 / 0.1 * 16 / 32, 0.05 / 0.1 * 43 / 32])
    # Stopped at the end of the first stage, where state is carried over next, and for Adam inside the second one, too.
    for number, last in ((2, 4), (3, 6), (1, 9)) if name == "adamw" else ((2, 4), (1, 9)):
        stopped = ranks(number).run(part, name, tmp_path / "stopped", last)
        assert stopped[0][0] == whole[last - len(stopped[0][0]) : last]
    assert largest(weights, stopped[0][1]) < 1e-12
    record = json.loads((tmp_path / "stopped" / "plan.json").read_text())
    scaled = record["ramp"][0]["scaled"]
    assert scaled["clip_norm"]["value"] == pytest.approx(3 / (43 / 32) ** 0.5)
    assert scaled["clip_norm"]["rule"] == "noise"
    names = ("momentum",) if name == "sgd" else ("beta1", "beta2", "eps", "weight_decay")
    rows = list(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    assert len(rows) == 9
    for row, one in zip(rows, whole, strict=True):  # what the optimizer stepped with, in the row of the step
        shown = one | dict(zip(("beta1", "beta2"), one.get("betas", ()), strict=False))
        assert {key: row.get(f"train/{key}") for key in FOLLOWERS} == {
            key: shown[key] if key in names else None for key in FOLLOWERS
        }
        assert row["train/clip_norm"] == pytest.approx(3 / (row["train/global_batch_size"] / 32) ** 0.5)
    key = "momentum" if name == "sgd" else "beta2"
    assert scaled[key]["inputs"]["global_batch_size"] == 43

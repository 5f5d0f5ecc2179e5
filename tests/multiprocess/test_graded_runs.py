"""Runs that predict themselves from earlier ones: on ranks, with delays whose length is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from largebatch.gradient import batch_stream
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.multiprocess.virtual_time import VirtualTime, virtual_time
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_graded_runs"
DELAY_S, BASE_S, PER_STEP_S, PER_SAMPLE_S, LOADING_S = 0.05, 0.01, 0.004, 0.0005, 0.0002
SMALL = ("model=linear", f"model._target_={HERE}.Slow", "data=by_target", "+data.num_features=8",
         "+data.num_classes=3", f"data.train._target_={HERE}.Slowly",
         f"data.validation._target_={HERE}.Slowly", "length=6steps", "schedule.warmup=0ep", "schedule=constant",
         "observers.metrics.every=2", "observers.evaluation.every=null", "observers.ledger.enabled=true")  # fmt: skip
_time = VirtualTime()  # of the run that goes on


class Slow(nn.Module):
    """A linear model whose passes take as long as a law says."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            _time.sleep(PER_STEP_S + PER_SAMPLE_S * len(inputs))
        return self.layer(inputs)


class Slowly(Dataset):
    """Samples that take some time to load."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        _time.sleep(LOADING_S)
        return torch.linspace(0, 1, 8) * place / 96, place % 3


Job = tuple[str, int]  # name, batch


def trained(folder: str, jobs: Sequence[Job], *overrides: str) -> list[dict[str, Any]]:
    """Runs, one after the other; what each left on this rank."""
    global _time
    found = []
    for number, (name, batch) in enumerate(jobs):
        slower = 1 + 0.02 * (number % 2)  # communication of every other run: noise that is known
        communication_s = slower * (BASE_S + DELAY_S)
        with (
            virtual_time(lambda step, bucket, took=communication_s: took) as _time,
            pytest.MonkeyPatch.context() as one,
        ):
            one.setattr(batch_stream, "time", _time)
            config = compose_run(*SMALL, f"batch.total={batch}", *overrides)
            run = train_quietly(config, Path(folder) / name)
        weights = torch.cat([part.detach().flatten() for part in run.model.parameters()])
        found.append({"summary": run.summary, "rows": run.rows, "weights": weights.numpy().tobytes()})
    return found


def test_a_delay_of_50_ms_in_every_all_reduce_is_predicted_and_measured_as_50_ms(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    sizes = (8, 8, 32, 32, 24)  # the last one is held out
    runs, others = ranks(2).run(
        trained, str(tmp_path / "runs"), [(f"run-{at}", batch) for at, batch in enumerate(sizes)]
    )
    last = runs[-1]["summary"]
    for what in ("value", "measured"):
        communication_s = last["predictions"]["exposed_communication"][what]
        assert communication_s - BASE_S == pytest.approx(DELAY_S, rel=0.1)
    truth = PER_STEP_S + 12 * (PER_SAMPLE_S + LOADING_S) + BASE_S + DELAY_S  # 12 samples on each of 2 ranks
    step = last["predictions"]["step_time"]
    assert step["kind"] == "interpolated"
    assert (step["value"], step["measured"]) == pytest.approx((truth, truth), rel=0.02)
    assert step["inside"]
    assert step["high"] / step["low"] < 1.3
    assert last["measured"]["data_wait"] == pytest.approx(12 * LOADING_S, rel=1e-6)
    assert "predictions" not in runs[0]["summary"], "there was nothing to predict from"
    assert all("predictions" not in one["summary"] for one in others), "rank 0 alone reads and grades"
    plan = json.loads((tmp_path / "runs/run-4/plan.json").read_text(encoding="utf-8"))
    assert plan["predictions"]["step_time"]["value"] == step["value"]

    # Predictions change nothing of a run.
    alone, _ = ranks(2).run(trained, str(tmp_path), [("off", 24)], "run.predict_from=none")
    assert alone[0]["weights"] == runs[-1]["weights"]
    assert [row.keys() for row in alone[0]["rows"]] == [row.keys() for row in runs[-1]["rows"]]
    ledgers = [(tmp_path / folder / "ledger.jsonl").read_text() for folder in ("off", "runs/run-4")]
    assert ledgers[0] == ledgers[1]

"""A batch that grows by the noise scale of its own run: the same run on any ranks, after any stop, and at any time.

The task is the noisy quadratic, whose noise scale at any weights is known: tr(Sigma) / |h theta|^2.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from largebatch import Observer, Run, StepReport
from largebatch.batch.noise_growth import GrowthDecision, as_overrides
from largebatch.data import noisy_quadratic
from largebatch.experiments.measure import critical_batch
from largebatch.experiments.measure.weights import open_weights, parse_measure
from largebatch.records.checkpoint import load_checkpoint
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.multiprocess.test_branched_runs import measured
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_growth"
VARIANCES, COPIES, SAMPLES = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125], 24, 768
CURVATURE = np.repeat(VARIANCES, COPIES)
TRACE = float(CURVATURE.sum())
TASK = ("data=noisy_quadratic", f"data.train.copies={COPIES}", f"data.train.num_samples={SAMPLES}", "model.start=0.4",
        "precision=fp64", "batch.total=9", "batch.micro=3", "scaling.base_lr=0.01", "scaling.base_batch_size=9",
        "scaling=sqrt", "scaling.momentum=half_life", "schedule=linear", "schedule.warmup=0ep",
        "optimizer.momentum=0.5", "observers.checkpoint.every=170samples", "observers.checkpoint.keep=9",
        "observers.evaluation.every=null", "observers.checkpoint.every_minutes=null",
        "observers.ledger.enabled=true", "observers.metrics.every=10")  # fmt: skip
LENGTH, WINDOW, CONFIRMATIONS = 600, 20, 2
DRIVEN = (*TASK, f"length={LENGTH}samples", "batch.ramp.by=noise_scale", "batch.ramp.totals=[13,15,31,400]",
          f"batch.ramp.confirmations={CONFIRMATIONS}", "observers.noise_scale.every=1",
          f"observers.noise_scale.window={WINDOW}")  # fmt: skip
ORDERED = "batch.reduction=ordered"


class Listed(Dataset):
    """The same samples one by one, as a set that loading processes read."""

    def __init__(self, split: str) -> None:
        self._set = noisy_quadratic(SAMPLES, VARIANCES, split, copies=COPIES)

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._set[index]


class Watching(Observer):
    """The weights before each step; and a gradient that is infinite in the steps with these numbers."""

    def __init__(self, bad_steps: tuple[int, ...] = ()) -> None:
        self.before: list[np.ndarray] = []
        self._bad, self._step = bad_steps, 1

    def on_start(self, run: Run) -> None:
        self._remember(run)
        parameter = next(run.module.parameters())
        parameter.register_hook(lambda gradient: gradient * math.inf if self._step in self._bad else None)

    def after_step(self, run: Run, report: StepReport) -> None:
        self._remember(run)

    def _remember(self, run: Run) -> None:
        self._step = run.progress.step + 1
        self.before.append(next(run.module.parameters()).detach().numpy().copy())


def trained(
    folder: str, *overrides: str, stop_after: int | None = None, bad_steps: tuple[int, ...] = ()
) -> dict[str, Any]:
    """`stop_after`: steps of this process; the ranks agree on the stop one step later."""
    calls, watching = itertools.count(1), Watching(bad_steps)
    config, observers = compose_run(*overrides), [watching]
    done = train_quietly(config, folder, observers=observers, stop=lambda: next(calls) == stop_after)
    lines = (Path(folder) / "ledger.jsonl").read_text().splitlines()
    ledger = [json.loads(line) for line in lines]
    return {
        "status": done.status,
        "summary": done.summary,
        "decisions": [GrowthDecision.of(one) for one in done.summary.get("batch_decisions", ())],
        "rows": done.rows,
        "steps": [(row["samples_seen"], row["ids"], row["lr"]) for row in ledger],
        "before": np.array(watching.before),
    }


def batches(run: dict[str, Any]) -> list[int]:
    """The batch of every step."""
    return np.diff([0, *(seen for seen, _, _ in run["steps"])]).tolist()


def places(run: dict[str, Any]) -> list[tuple[int, int]]:
    return [(one.samples_seen, one.total) for one in run["decisions"]]


def first_step(run: dict[str, Any]) -> int:
    """After which the batch grows."""
    return [seen for seen, _, _ in run["steps"]].index(run["decisions"][0].samples_seen) + 1


def cooled(folder: Path, length: str, *, after: int) -> tuple[str, ...]:
    """Settings of a cooldown from the first checkpoint after this step."""
    at = min(one for one in (folder / "checkpoints").glob("step_*") if int(one.name[5:]) > after)
    return f"cooldown.checkpoint={at}", f"cooldown.length={length}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that nobody stopped, on one process."""
    folder = tmp_path_factory.mktemp("growth") / "whole"
    return trained(str(folder), *DRIVEN, ORDERED) | {"folder": folder}


def test_the_batch_grows_where_the_lower_end_of_the_true_noise_scale_lets_it(whole: dict[str, Any]):
    """The interval covers the ratio of the window's mean moments, which the weights of its steps say in closed form.

    The noise scale of this task grows, so the window's is behind that of the present weights, and growth is late.
    """
    lows = {row["step"]: row["noise_scale/ci_low"] for row in whole["rows"] if "noise_scale/ci_low" in row}
    expected, candidates, in_a_row = [], [9, 13, 15, 31], 0
    for step, (seen, _, _) in enumerate(whole["steps"], start=1):
        in_a_row = in_a_row + 1 if len(candidates) > 1 and lows.get(step, -1.0) >= candidates[1] else 0
        if in_a_row == CONFIRMATIONS:
            del candidates[0]
            expected.append((seen, candidates[0]))
            in_a_row = 0
    assert places(whole) == expected
    assert [total for _, total in expected] == [13, 15]
    milestones = [seen for seen, _ in expected]
    begins = [seen - batch for (seen, _, _), batch in zip(whole["steps"], batches(whole), strict=True)]
    assert batches(whole) == [[9, 13, 15][bisect.bisect_right(milestones, begin)] for begin in begins]

    true = TRACE / ((CURVATURE * whole["before"]) ** 2).sum(axis=1)  # before each step
    for decision in whole["decisions"]:
        step = [seen for seen, _, _ in whole["steps"]].index(decision.samples_seen) + 1
        of_window = 1 / np.mean(1 / true[step - WINDOW : step])
        assert decision.low < of_window < decision.high
        assert decision.total <= decision.low < of_window < true[step - 1]
        row = next(row for row in whole["rows"] if row["step"] == step and "batch/grown_to" in row)
        found = [row[f"batch/{name}"] for name in ("grown_to", "noise_scale", "ci_low", "ci_high", "num_measurements")]
        assert found == [decision.total, decision.value, decision.low, decision.high, WINDOW]
    plan = json.loads((whole["folder"] / "plan.json").read_text())
    assert (plan["num_steps"], plan["total_samples"]) == (len(whole["steps"]), LENGTH)
    assert [(one["from_samples"], one["global_batch_size"]) for one in plan["ramp"]] == places(whole)
    assert plan["growth"]["decisions"] == [one.record() for one in whole["decisions"]]
    rates = {batch: float.fromhex(rate) / (1 - begin / LENGTH)
             for (_, _, rate), batch, begin in zip(whole["steps"], batches(whole), begins, strict=True)}  # fmt: skip
    # All that a gradient moves a weight by, lr / (1 - momentum), follows the rule of the rate.
    known = {batch: 0.02 * math.sqrt(batch / 9) * (1 - 0.5 ** (batch / 9)) for batch in (9, 13, 15)}
    assert rates == pytest.approx(known, rel=1e-9)


def test_ranks_with_loading_processes_decide_alike(
    ranks: Callable[[int], RankPool], whole: dict[str, Any], tmp_path: Path
):
    """Three ranks, until after the first decision, by which they have loaded more of the smaller batch."""
    own = (f"data.train._target_={HERE}.Listed", "~data.train.num_samples", "~data.train.noise_variance",
           "~data.train.copies", "data.num_workers=1", f"model.curvature={VARIANCES}", f"model.copies={COPIES}",
           f"data.validation.num_samples={SAMPLES}", f"data.validation.noise_variance={VARIANCES}",
           f"data.validation.copies={COPIES}")  # fmt: skip
    stop_after = first_step(whole) + 2
    for run in ranks(3).run(trained, str(tmp_path / "run"), *DRIVEN, *own, stop_after=stop_after):
        taken = len(run["steps"])
        assert taken > stop_after
        assert (places(run), run["steps"]) == (places(whole)[:1], whole["steps"][:taken])
        np.testing.assert_allclose(run["before"], whole["before"][: taken + 1], rtol=1e-12, atol=1e-12)


def test_a_run_stopped_before_and_between_decisions_is_the_same_bit_for_bit(
    ranks: Callable[[int], RankPool], whole: dict[str, Any], tmp_path: Path
):
    """Each time on another number of ranks; the first stop comes between two measurements that confirm together.

    Last digits of the evidence depend on the number of ranks, which sum norms in another order; weights do not.
    """
    folder, pieces = str(tmp_path / "run"), [(2, first_step(whole) - 2), (3, 2), (1, None)]
    for number, (world_size, stop_after) in enumerate(pieces):
        resume = "resume=auto" if number else "resume=none"
        run, *_ = ranks(world_size).run(trained, folder, *DRIVEN, ORDERED, resume, stop_after=stop_after)
        if number == 1:
            assert places(run) == places(whole)[:1], "stopped between the two decisions"
    assert (run["status"], places(run), run["steps"]) == ("finished", places(whole), whole["steps"])
    assert [one.low for one in run["decisions"]] == pytest.approx([one.low for one in whole["decisions"]], rel=1e-9)
    assert (run["before"] == whole["before"][-len(run["before"]) :]).all()


def test_the_recorded_decisions_repeat_the_run_and_its_cooldown_without_measuring(
    whole: dict[str, Any], tmp_path: Path
):
    """The cooldown begins between the decisions, at the grown batch, and makes the second one itself."""
    fixed = (*TASK, f"length={LENGTH}samples", *as_overrides(whole["decisions"]), ORDERED)
    run = trained(str(tmp_path / "run"), *fixed)
    assert run["steps"] == whole["steps"]
    assert (run["before"] == whole["before"]).all()
    assert not any("noise_scale/trace" in row for row in run["rows"])

    trunks = [(whole["folder"], (*DRIVEN, ORDERED)), (tmp_path / "run", fixed)]
    driven, known = (
        trained(str(tmp_path / f"end_{number}"), *overrides, *cooled(folder, "80samples", after=first_step(whole)))
        for number, (folder, overrides) in enumerate(trunks)
    )
    assert places(driven) == places(whole)
    assert driven["steps"] == known["steps"]
    assert (driven["before"] == known["before"]).all()


def test_a_cooldown_shorter_than_the_grown_batch_is_refused(whole: dict[str, Any], tmp_path: Path):
    short = cooled(whole["folder"], "12samples", after=first_step(whole))
    with pytest.raises(ConfigError, match="12 samples are less than one batch of 13"):
        trained(str(tmp_path / "run"), *DRIVEN, ORDERED, *short)


def test_the_critical_batch_of_a_grown_run_is_sought_from_its_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    own = [*DRIVEN, "scaling.momentum=none", "schedule=constant", "length=230samples", "batch.ramp.totals=[13]",
           "batch.ramp.confirmations=1", "batch.ramp.factor=20"]  # fmt: skip
    grown = trained(str(tmp_path / "run"), *own)
    assert [total for _, total in places(grown)] == [13]
    at = tmp_path / "run" / grown["summary"]["checkpoint"]
    config = compose_run(*own, f"measure.checkpoint={at}", "measure.critical_batch.factors=[1,2,3]",
                         config_name="measure")  # fmt: skip
    options = parse_measure(config, keeps_format_for="critical-batch")
    prepared, designs = prepare(config, os.environ), []
    monkeypatch.setattr(
        critical_batch, "run_branches", lambda prepared, weights, design, *_, **__: designs.append(design)
    )
    with (
        open_weights(prepared, options.checkpoint) as weights,
        pytest.raises(TypeError),
    ):  # no result, which is unpacked
        critical_batch.plan(prepared, options)(weights)
    (design,) = designs
    assert [one.plan.global_batch_size for (one,) in design.branches] == [13, 26, 39]
    assert design.lr_at(205) == pytest.approx(0.01 * math.sqrt(13 / 9), rel=1e-12)


def test_betas_and_epsilon_that_follow_the_batch_follow_a_decision(tmp_path: Path):
    """AdamW by the joint rule `sde` takes the steps of the run that has the same batches as milestones."""
    adaptive = ("optimizer=adamw", "optimizer.betas=[0.8,0.9]", "scaling=sde", "scaling.base_lr=0.01",
                "length=350samples")  # fmt: skip
    task = tuple(one for one in TASK if not one.startswith(("optimizer", "scaling.momentum", "scaling=")))
    eager = tuple(one for one in DRIVEN if one not in TASK)
    driven = (*task, *eager, *adaptive, ORDERED, "batch.ramp.totals=[13,16,31]",
              "batch.ramp.confirmations=1", "batch.ramp.factor=20")  # fmt: skip
    run = trained(str(tmp_path / "run"), *driven)
    assert places(run) == [(180, 13), (193, 16), (209, 31)]
    known = trained(str(tmp_path / "fixed"), *task, *adaptive, ORDERED, *as_overrides(run["decisions"]))
    assert run["steps"] == known["steps"]
    assert (run["before"] == known["before"]).all()


def test_a_rollback_forgets_the_decisions_after_its_checkpoint(whole: dict[str, Any], tmp_path: Path):
    """The weights go back to before the batch grew; the position does not, and the growth is to be confirmed anew."""
    (grown_at, _), *_ = places(whole)
    steps = [seen for seen, _, _ in whole["steps"]]
    before, bad = steps.index(grown_at), steps.index(grown_at) + 4
    guarded = (*DRIVEN, ORDERED, "guard.policy=rollback", f"observers.checkpoint.every={9 * before}samples")
    run = trained(str(tmp_path / "run"), *guarded, bad_steps=(bad,))
    assert run["summary"]["guard/rolled_back"] == 1
    back = grown_at + 13 * (bad - before - 1)
    (first, undone, again), _ = run["decisions"][:3], run["decisions"][3:]
    assert (first.samples_seen, first.total) == (grown_at, 13)
    assert undone == GrowthDecision(back, 9, "rollback")
    assert again.total == 13
    assert again.samples_seen >= back + 9 * CONFIRMATIONS
    assert batches(run)[: bad + 1] == [9] * (before + 1) + [13] * (bad - before - 1) + [9]
    assert run["steps"][-1][0] <= LENGTH < run["steps"][-1][0] + batches(run)[-1]

    stopped = trained(str(tmp_path / "again"), *guarded, bad_steps=(bad,), stop_after=bad - 1)
    assert [one.because for one in stopped["decisions"]] == ["noise_scale", "rollback"]
    saved = [load_checkpoint(tmp_path / "again" / "checkpoints" / f"step_{at:08d}") for at in (before, bad)]
    kept, back_again = (one.values["memory"]["observers"]["NoiseScaleObserver"] for one in saved)
    assert back_again == kept, "measurements of weights that are gone do not count"
    resumed = trained(str(tmp_path / "again"), *guarded, "resume=auto")
    assert (resumed["decisions"], resumed["steps"]) == (run["decisions"], run["steps"])
    assert (resumed["before"][-1] == run["before"][-1]).all()


def test_branches_leave_the_run_at_the_batch_that_it_has_decided_on(whole: dict[str, Any], tmp_path: Path):
    sizes = dict(zip([0, *(seen for seen, _, _ in whole["steps"])], batches(whole), strict=False))
    decided = list(sizes).index(whole["decisions"][0].samples_seen)
    trained(str(tmp_path / "run"), *DRIVEN, ORDERED, stop_after=decided)
    branches = ["factors=[1,2,3]", "steps=2"]
    numbers = measured([*DRIVEN, ORDERED, f"measure.checkpoint={tmp_path / 'run'}",
                        *(f"measure.critical_batch.{one}" for one in branches)])  # fmt: skip
    size = sizes[numbers["samples_seen"]]
    assert size > sizes[0]
    assert [one["batch_size"] for one in numbers["branches"]] == [size, 2 * size, 3 * size]

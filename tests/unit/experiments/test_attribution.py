"""The runs of an attribution are what their table says, are made once, and answer for a task that is known."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from largebatch.__main__ import main
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.attribution.corners import NOISE, STEPS, UNSCALED, Design, plan_design
from largebatch.experiments.attribution.matched_runs import make_matched_runs, require_same_attribution
from largebatch.experiments.attribution.settings import AttributionConfig
from largebatch.run.config.reading import ConfigError, parse_section
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

TINY = ("attribute.orders=both", "data=synthetic",
        "data.train.num_samples=48", "data.validation.num_samples=8", "model=linear", "length=4ep",
        "batch.total=12", "attribute.small=4", "scaling.base_lr=0.1", "scaling.base_batch_size=8")  # fmt: skip
QUADRATIC = ("attribute.orders=both",
             "experiment=noisy_quadratic", "precision=fp64", "scaling=linear", "data.train.num_samples=4096",
             "data.train.copies=8", "data.validation.num_samples=65", "length=256samples", "batch.total=32",
             "attribute.small=4", "scaling.base_lr=0.05", "scaling.base_batch_size=4")  # fmt: skip


def designed(*overrides: str) -> tuple[Design, DictConfig, AttributionConfig]:
    config = compose_run(*overrides, config_name="attribute")
    options = parse_section(config, "attribute", AttributionConfig)
    return plan_design(config, options), config, options


def rates(design: Design, config: DictConfig, options: AttributionConfig) -> dict[frozenset[str], list[float]]:
    found = {}
    for changes, corner in design.corners.items():
        made = prepare(design.config_of(corner, config, options, seed=3), os.environ)
        numbers = made.numbers
        assert (made.config.seed, numbers.plan.global_batch_size, numbers.num_steps) == (
            3, corner.global_batch_size, corner.num_steps,
        )  # fmt: skip
        found[changes] = [numbers.lr_at(step * corner.global_batch_size) for step in range(corner.num_steps)]
    return found


def test_each_run_differs_in_one_thing_and_the_schedule_keeps_its_share():
    design, config, options = designed(*TINY, "schedule=linear", "schedule.warmup=2ep", "schedule.warmup_from=zero")
    assert {changes: (one.global_batch_size, one.num_steps) for changes, one in design.corners.items()} == {
        frozenset(): (4, 48),
        frozenset({NOISE}): (12, 48),
        frozenset({STEPS}): (4, 16),
        frozenset({NOISE, STEPS}): (12, 16),
        frozenset({NOISE, STEPS, UNSCALED}): (12, 16),
    }
    found = rates(design, config, options)
    # Half of 48 steps warm up to the rate of batch 4, 0.05; half of 16 steps to that of batch 12, 0.15.
    many = [0.05 * (step / 24 if step < 24 else 1 - (step - 24) / 24) for step in range(48)]
    few = [0.15 * (step / 8 if step < 8 else 1 - (step - 8) / 8) for step in range(16)]
    for changes, lrs in found.items():
        expected = few if STEPS in changes else many
        expected = [rate / 3 for rate in few] if UNSCALED in changes else expected
        np.testing.assert_allclose(lrs, expected, rtol=1e-12, err_msg=str(sorted(changes)))


def test_tuned_values_are_the_fit_and_the_rule_becomes_a_change_of_its_own():
    design, config, options = designed(*TINY, "schedule=constant", "schedule.warmup=0ep",
                                       "attribute.tuned={scaling.base_lr: 0.02, optimizer.momentum: 0.5}")  # fmt: skip
    found = {tuple(sorted(changes)): lrs[0] for changes, lrs in rates(design, config, options).items()}
    assert found == pytest.approx(
        {
            (): 0.05,
            ("less noise",): 0.05,
            ("fewer steps",): 0.03,
            ("fewer steps", "less noise"): 0.03,
            ("fewer steps", "less noise", "rule instead of tuned"): 0.15,
            ("fewer steps", "less noise", "rule instead of tuned", "unscaled hyper-parameters"): 0.05,
        }
    )
    tuned = design.corners[frozenset({NOISE, STEPS})]
    assert design.config_of(tuned, config, options, seed=0).optimizer.momentum == 0.5
    assert design.config_of(design.large, config, options, seed=0).optimizer.momentum == 0.9


def test_without_a_rule_there_is_nothing_unscaled_and_one_order_needs_one_run_less():
    design, *_ = designed(*TINY, "scaling=none", "schedule=constant", "attribute.orders=noise_first")
    assert not design.is_scaled
    assert design.orders == ((NOISE, STEPS),)
    assert list(design.corners) == [frozenset(), frozenset({NOISE}), frozenset({NOISE, STEPS})]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attribute.small=12", "attribute.small=12: is not below batch.total=12"),
        ("length=40steps", "length=40steps: both batches are compared after equal samples"),
        ("batch.ramp={milestones: [1ep], totals: [24]}", "batch.ramp: a run whose batch changes"),
        ("resume=.", "resume=.: runs of an attribution start from the same initial weights"),
        ("scaling.as_batch=8", "scaling.as_batch=8: gives every batch the hyper-parameters of that one"),
        ("attribute.tuned={scaling.as_batch: 8}", "scaling.as_batch is set by the experiment"),
        ("length=1ep batch.total=40 attribute.small=30", "both take 1 steps"),
        ("attribute.tuned={model.width: 3}", "model.width is no hyper-parameter"),
        ("attribute.tuned={optimizer.momentom: 0.5}", "momentom"),
    ],
)
def test_wrong_input_is_refused_before_any_run(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        designed(*TINY, *(override.split() if "{" not in override else [override]))


def test_runs_of_a_known_task_end_where_closed_forms_say_and_are_made_once(tmp_path: Path):
    asked = ["attribute", *QUADRATIC, "attribute.seeds=1", f"run.dir={tmp_path}"]
    assert main(asked) == 0
    record = json.loads((tmp_path / "attribution.json").read_text())["numbers"]
    curvature = np.repeat([2.0**-power for power in range(8)], 8)
    task, ones = NoisyQuadratic(curvature, curvature), np.ones(64)
    for run in record["runs"]:
        lr = 0.05 * run["rule_batch_size"] / 4
        asked_of = {"lr": lr, "num_steps": run["num_steps"]}
        second = task.second_moments(ones, **asked_of, global_batch_size=run["global_batch_size"])[-1]
        mean = task.mean_trajectory(ones, **asked_of)[-1] ** 2
        # Of a normal theta: Var(h theta^2 / 2) = h^2 (2 v^2 + 4 m^2 v) / 4.
        spread = second - mean
        sigma = math.sqrt(float(np.sum(curvature**2 * (2 * spread**2 + 4 * mean * spread))) / 4)
        assert abs(run["values"][0] - 0.5 * float(curvature @ second)) < 4.5 * sigma, run
    total = record["total"]["value"]
    assert math.fsum(part["value"] for part in record["parts"]) == pytest.approx(total, abs=1e-12)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/summary.json")}
    assert len(before) == 5
    assert main([*asked[:-2], "attribute.seeds=2", asked[-1]]) == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/summary.json")}
    assert before.items() <= after.items()
    assert len(after) == 10


def test_a_stopped_run_goes_on_in_mid_run_and_another_metric_is_read_from_the_same_runs(tmp_path: Path):
    design, config, options = designed(*TINY, "attribute.orders=noise_first", "attribute.seeds=1", "length=1ep")
    design = replace(design, corners={frozenset(): design.small})  # one run is enough

    def made(name: str, options: AttributionConfig, most_steps: int = 1000) -> tuple[dict[Any, Any] | None, int]:
        require_same_attribution(tmp_path / name, config, options)
        asks, trained = iter(range(1000)), []
        found = make_matched_runs(
            design, config, options, tmp_path / name, first_seed=0, stop=lambda: next(asks) >= most_steps,
            on_run=lambda *one: trained.append(one),
        )  # fmt: skip
        return None if found is None else {key: one.value for key, one in found.items()}, len(trained)

    whole = made("whole", options)
    assert made("broken", options, design.small.num_steps // 2) == (None, 0)
    assert made("broken", options) == whole
    # In mid run, and nothing was removed before: another rank may look at the folder meanwhile.
    (history,) = (tmp_path / "broken").glob("runs/*/history.jsonl")
    first, second = (json.loads(line)["step"] for line in history.read_text().splitlines())
    assert first == 0 < second < design.small.num_steps
    accuracies, trained = made("broken", options.model_copy(update={"metric": "eval/val_accuracy"}))
    assert trained == 0
    assert accuracies is not None
    assert 0 <= next(iter(accuracies.values())) <= 1


def test_a_folder_of_other_settings_or_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert main(["attribute", *TINY, f"run.dir={foreign}"]) == 2
    assert "holds something that is no attribution" in capsys.readouterr().err
    begun = tmp_path / "begun"
    settings: dict[str, Any] = {"attribute": {"small": 2}}
    begun.mkdir()
    (begun / "attribution_settings.json").write_text(json.dumps(settings))
    assert main(["attribute", *TINY, f"run.dir={begun}"]) == 2
    assert "attribute.small=4: was 2 when" in capsys.readouterr().err


def test_rules_that_name_one_batch_do_not_go_with_a_ramp():
    ramp = ["batch.ramp.milestones=[1ep]", "batch.ramp.totals=[24]"]
    with pytest.raises(ConfigError, match=r"scaling.as_batch=4: names one batch for all rules"):
        prepare(compose_run(*TINY[1:6], *ramp, "scaling.as_batch=4"), os.environ)


def test_whatever_follows_the_batch_is_held_with_the_rate():
    design, config, options = designed(*TINY, "scaling=none", "scaling.momentum=half_life", "schedule=constant",
                                       "schedule.warmup=0ep")  # fmt: skip
    assert design.is_scaled
    found = {}
    for changes, corner in design.corners.items():
        numbers = prepare(design.config_of(corner, config, options, seed=0), os.environ).numbers
        found[corner.rule_batch_size, UNSCALED in changes] = numbers.scaled[0]["momentum"].value
    # 0.9 at batch 8: the half-life in samples stays.
    assert found == pytest.approx({(4, False): 0.9**0.5, (12, False): 0.9**1.5, (4, True): 0.9**0.5})

"""What the textbook's experiments on large batches compute from their runs, against closed forms and by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, open_dict

from largebatch.batch.order import SampleOrder
from largebatch.cli.composition.composing import compose_config
from largebatch.experiments.textbook.bands import agreement
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.lars import Settings as LarsSettings
from largebatch.experiments.textbook.lars import tune
from largebatch.experiments.textbook.linear_scaling import Settings as LinearScaling
from largebatch.experiments.textbook.linear_scaling import _about_limit
from largebatch.experiments.textbook.noise_and_minima import Series, verdict_sentences
from largebatch.experiments.textbook.one_step import Detour, measure_detour
from largebatch.experiments.textbook.outcomes import Outcome, finals, train_seeds
from largebatch.experiments.textbook.regression import least_squares
from largebatch.experiments.textbook.warmup import Settings as WarmupSettings
from largebatch.experiments.textbook.warmup import Warmup, _lead_text, highest_at_peak, train_warmup

REGRESSION = ("experiment=linear_regression", "precision=fp64", "data.train.num_samples=60",
              "data.validation.num_samples=60", "observers.evaluation.every=null")  # fmt: skip


def regression(folder: Path, *overrides: str) -> Experiment:
    return Experiment(compose_config([*REGRESSION, *overrides], config_name="textbook"), folder)


@pytest.mark.parametrize("after", [0, 3])
def test_one_step_in_the_place_of_two_misses_by_the_hessian_of_the_second_batch_times_the_first_gradient(
    after: int, tmp_path: Path
):
    """w - eta g1(w) - eta g2(w - eta g1(w)) against w - eta (g1(w) + g2(w)): they differ by eta^2 H2 g1."""
    experiment = regression(tmp_path, "scaling.base_lr=0.05", "scaling.base_batch_size=10", "+model.zero_init=true")
    found = measure_detour(experiment, [2], after_steps=after, num_seeds=1)

    task, lr = least_squares(experiment), 0.05
    ids = SampleOrder(60, experiment.config.seed).ids(0, 10 * (after + 2)).reshape(-1, 10)

    def gradient(weights, batch):
        rows = task.design[batch]
        return rows.T @ (rows @ weights - task.targets[batch]) / 10

    weights = np.zeros(task.design.shape[1])
    for batch in ids[:after]:
        weights = weights - lr * gradient(weights, batch)
    first = gradient(weights, ids[after])
    second = gradient(weights - lr * first, ids[after + 1])
    hessian = task.design[ids[after + 1]].T @ task.design[ids[after + 1]] / 10
    expected = np.linalg.norm(lr**2 * hessian @ first) / np.linalg.norm(lr * (first + second))
    assert found.distances == pytest.approx(np.array([[expected]]), rel=1e-9)


def test_the_slope_of_a_detour_is_that_of_its_geometric_means():
    factors = np.array([2, 3, 5, 9])
    distances = np.array([0.5, 2.0])[:, None] * 0.01 * (factors - 1.0) ** 0.7
    assert Detour(0, factors.tolist(), distances).slope == pytest.approx(0.7, rel=1e-12)


def test_an_outcome_has_the_last_value_of_each_seed_and_none_of_a_run_that_diverged():
    rows = [
        [{"samples_seen": 8, "loss": 3.0}, {"samples_seen": 16, "loss": 2.0}, {"samples_seen": 24, "loss": 1.0}],
        [{"samples_seen": 8, "loss": 5.0}, {"samples_seen": 16, "loss": 1e9}],
    ]
    outcome = Outcome(["finished", "diverged"], [{"best": 0.5}, {"best": 0.25}], rows)
    np.testing.assert_array_equal(outcome.final("loss"), [1.0, np.nan])
    np.testing.assert_array_equal(outcome.final("best"), [0.5, np.nan])
    np.testing.assert_array_equal(outcome.final("absent"), [np.nan, np.nan])
    samples, values = outcome.curve("loss")
    assert (samples.tolist(), values.tolist()) == ([8, 16], [[3, 2], [5, 1e9]])
    assert finals([outcome, outcome], "loss").shape == (2, 2)


def test_seeds_count_from_that_of_the_config(tmp_path: Path):
    experiment = regression(tmp_path, "seed=5", "length=1ep")
    train_seeds(experiment, "mine", "batch.total=20", seeds=(0, 2))
    assert experiment.runs == ["runs/mine-0", "runs/mine-2"]
    seeds = [line for run in experiment.runs for line in (tmp_path / run / "config.yaml").read_text().splitlines()
             if line.startswith("seed:")]  # fmt: skip
    assert seeds == ["seed: 5", "seed: 7"]


@pytest.mark.parametrize("factors", [[2, 4, 8], [1, 4, 2], [1, 2, 2]])
def test_factors_rise_from_one(factors: list[int]):
    with pytest.raises(ValueError, match="values must rise from 1"):
        LinearScaling(factors=factors, beside=[], seeds=1, tolerance=0.1, after_steps=[0])


def outcome(rates: list[float], losses: list[float], end: float, status: str = "finished") -> Outcome:
    rows = [{"samples_seen": 8 * at, "train/lr": lr, "train/loss": loss}
            for at, (lr, loss) in enumerate(zip(rates, losses, strict=True), 1)]  # fmt: skip
    return Outcome([status], [{"eval/train_loss": end}], [rows])


def test_the_jump_after_a_warmup_is_over_the_loss_with_which_the_peak_begins():
    constant = outcome([0.1, 0.1, 0.8, 0.8, 0.4], [2.0, 1.0, 0.5, 4.0, 3.0], 0.1)
    assert highest_at_peak(constant) == pytest.approx([8.0])
    # Without a warmup the peak is the first step.
    assert highest_at_peak(outcome([0.8, 0.8, 0.4], [2.0, 1.0, 3.0], 0.1)) == pytest.approx([1.5])


def test_a_run_is_lost_that_diverges_or_ends_above_the_limit():
    ends = Warmup("none", [], np.array([[0.1, 1.0], [1.1, 0.2], [np.inf, np.nan]]), np.ones((3, 2)))
    assert ends.num_lost(1.0) == [0, 1, 2]


def test_warmup_starts_at_the_base_rate_or_at_the_peak(tmp_path: Path):
    """8 times the base rate at 8 times the batch: what `kind` makes of the first and the last step of a warmup."""
    config = compose_config(["experiment=textbook/warmup", "length=4ep", "schedule.warmup=2ep", "data.limit=256",
                             "observers.evaluation.every=null", "model.hidden=[4]", "batch.total=64"],
                            config_name="textbook")  # fmt: skip
    settings = WarmupSettings(
        kinds=["none", "constant", "gradual"], base_lrs=[0.1], small_batch=64, seeds=1, lost_above=1.0
    )
    experiment = Experiment(without_section(config), tmp_path)
    rates = {
        kind: train_warmup(experiment, settings, kind).outcomes[0].curve("train/lr").values[0]
        for kind in settings.kinds
    }
    assert rates["none"][0] == pytest.approx(0.2)
    assert rates["constant"][:9] == pytest.approx([0.1] * 8 + [0.2])
    assert rates["gradual"][:9] == pytest.approx(0.1 + 0.1 * np.arange(9) / 8)


def without_section(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["textbook"]
    return config


def ended(key: str, *values: float, statuses: Sequence[str] = ()) -> Outcome:
    return Outcome(statuses or ["finished"] * len(values), [{key: value} for value in values], [[]] * len(values))


def test_a_change_is_paired_by_seed_and_has_students_interval_from_three_on():
    loss = "eval/train_loss"
    series = Series("equal steps", [8, 64], [ended(loss, 1.0, 3.0, 2.0), ended(loss, 2.0, 6.0, 4.0)])
    # Differences 1, 3 and 2: mean 2, standard error 1/sqrt(3), Student's t with two degrees of freedom 4.302653.
    half = 4.302653 / math.sqrt(3)
    assert series.change(loss, of_logarithms=False) == pytest.approx((2, 2 - half, 2 + half))
    assert series.change(loss, of_logarithms=True) == pytest.approx((2, 2, 2))
    for few in ((1.0,), (1.0, 2.0)):
        assert Series("equal steps", [8, 64], [ended(loss, *few)] * 2).change(loss, of_logarithms=False) is None
    lost = ended(loss, 1.0, 1.0, 1.0, statuses=["finished", "diverged", "finished"])
    assert Series("equal steps", [8, 64], [series.outcomes[0], lost]).change(loss, of_logarithms=True) is None


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([1.6], "one seed cannot tell whether they agree"),
        ([1.6, 1.6], "2 seeds cannot tell whether they agree"),
        ([1.6, 1.5, 1.7], "they disagree"),
        ([0.6, 0.5, 0.55], "they disagree"),
        ([1.02, 1.03, 1.04], "they agree"),  # apart from 1 by many errors, and a model is no better than that
        ([1.6, 0.9, 1.3], "3 seeds do not tell whether they agree"),
    ],
)
def test_agreement_and_disagreement_are_told_by_an_interval(ratios: list[float], words: str):
    found = agreement(ratios)
    assert found.words == words
    assert found.value == pytest.approx(math.exp(np.log(ratios).mean()))
    assert (found.interval == "") is (len(ratios) < 3)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([10.0, 11.0, 12.0], ": that agrees"),
        ([30.0, 31.0, 32.0], ": that does not agree"),
        ([10.0, 20.0, 30.0], ": the seeds do not tell whether that is the same k"),
        ([10.0], "; one seed cannot tell whether that is the same k"),
    ],
)
def test_the_end_of_the_linear_rule_is_compared_by_an_interval(limits: list[float], words: str):
    assert _about_limit(np.array(limits), 8, 16).endswith(words)


def test_the_lowest_of_two_is_lead_text_by_pairs_of_seeds():
    best = np.array([1.0, 2.0, 4.0])
    assert _lead_text(best, 1.5 * best, "none") == "and none has 1.50 times that (95 %: 1.50 to 1.50)"
    assert _lead_text(best, best * [0.9, 1.1, 1.4], "none").endswith(": no clear difference")
    assert _lead_text(best, best * [1.1, np.inf, 1.4], "none") == "and none loses seeds"
    assert _lead_text(best[:2], 2 * best[:2], "none") == "but 2 seeds cannot tell that from luck"


def test_tuning_takes_the_rate_with_the_least_validation_loss_and_trains_other_seeds_with_it(tmp_path: Path):
    config = compose_config(["experiment=textbook/lars", "data.limit=64", "model.hidden=[8]", "length=4ep"],
                            config_name="textbook")  # fmt: skip
    given = {"batch_sizes": [16, "full"], "base_lrs": {"lamb": 0.01}, "grid": [0.01, 4.0, 1e6], "seeds": 2}
    settings = LarsSettings(**given, tolerance=0.01)

    def compose(choices: Sequence[str]) -> DictConfig:
        return without_section(
            compose_config(["experiment=textbook/lars", "data.limit=64", "model.hidden=[8]", "length=4ep", *choices],
                           config_name="textbook")
        )  # fmt: skip

    experiment = Experiment(without_section(config), tmp_path, compose=compose)
    found = tune(experiment, settings, "lamb", "full")
    assert (found.global_batch_size, found.num_steps) == (64, 4)
    # sqrt(64 / 32) times the base rate, times the grid.
    assert found.lrs == pytest.approx([0.01 * 2**0.5 * times for times in (0.01, 4.0, 1e6)])
    assert (found.chosen, found.is_at_border) == (int(np.argmin(found.tried)), False)
    chosen = [run for run in experiment.runs if "chosen" in run]
    assert chosen == ["runs/lamb-bfull-chosen-1", "runs/lamb-bfull-chosen-2"]
    plans = [json.loads((tmp_path / run / "plan.json").read_text()) for run in chosen]
    assert [plan["peak_lr"]["value"] for plan in plans] == pytest.approx([0.04 * 2**0.5] * 2)


@pytest.mark.parametrize(
    ("large", "verdict"),
    [
        ((2.0, 0.5), "ends sharper, and generalizes worse: the textbook is right."),
        ((2.0, 0.1), "ends sharper, and its gap does not clearly differ: this does not support the textbook."),
        ((0.5, 0.5), "ends flatter, and generalizes worse: this does not support"),
        ((1.0, -0.4), "ends no sharper as far as the seeds tell, and generalizes better: this does not support"),
    ],
)
def test_the_verdict_on_minima_follows_the_intervals(large: tuple[float, float], verdict: str):
    def at_end(sharpness: float, gap: float, *, seeds: int = 3) -> Outcome:
        values = {"sharpness/lambda_max": sharpness, "gap/loss": gap, "eval/train_loss": 0.1}
        return Outcome(["finished"] * seeds, [values] * seeds, [[]] * seeds)

    (sentence,) = verdict_sentences([Series("equal steps (9)", [8, 64], [at_end(1.0, 0.1), at_end(*large)])])
    assert verdict in sentence
    pair = [at_end(1.0, 0.1, seeds=1), at_end(*large, seeds=1)]
    assert verdict_sentences([Series("equal steps (9)", [8, 64], pair)]) == [
        "One seed cannot tell whether the change from small to large batches is more than noise."
    ]

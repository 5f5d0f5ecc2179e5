"""What the chapter's experiments on large batches compute from their runs, against closed forms and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from largebatch.chapter.experiment import Experiment
from largebatch.chapter.linear_scaling import Settings as LinearScaling
from largebatch.chapter.one_step import Detour, measure_detour
from largebatch.chapter.outcomes import Outcome, finals, train_seeds
from largebatch.chapter.regression import least_squares
from largebatch.commands.composition import compose_config
from largebatch.order import SampleOrder

REGRESSION = ("experiment=linear_regression", "precision=fp64", "data.train.num_samples=60",
              "data.validation.num_samples=60", "observers.evaluation.every=null")  # fmt: skip


def regression(folder: Path, *overrides: str) -> Experiment:
    return Experiment(compose_config([*REGRESSION, *overrides], config_name="chapter"), folder)


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
    with pytest.raises(ValueError, match="they rise, and begin with 1"):
        LinearScaling(factors=factors, beside=[], seeds=1, tolerance=0.1, after_steps=[0])

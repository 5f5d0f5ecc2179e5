"""Gradient variance against closed forms, equal on any number of ranks, and without a trace in the model."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.data import ArrayDataset, linear_regression
from largebatch.diagnostics.closed_forms import LeastSquares
from largebatch.diagnostics.noise.measurement import GradientVariance, VarianceSettings, measure_variance
from largebatch.diagnostics.noise.nested_groups import NestedGroups
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy, NextToken, SquaredError
from largebatch.models import Linear
from tests.multiprocess.test_sharpness import problem
from tests.restless import Restless, bits

SETTINGS = VarianceSettings(seed=3, batch_sizes=(2, 4, 12), replications=5)


def regression() -> tuple[nn.Module, Any, FixedSubset]:
    torch.manual_seed(0)
    data = linear_regression(216, 10, "train", noise=0.5)
    return Linear(10, 1).double(), SquaredError(), FixedSubset(data, np.random.default_rng(0).permutation(216), 36)


def measure(kind: str, settings: VarianceSettings = SETTINGS, micro: int | None = None) -> GradientVariance | None:
    with Runtime.open(precision="fp64") as runtime:
        module, loss, subset = regression() if kind == "regression" else problem(kind)
        subset = dataclasses.replace(subset, micro_batch_size=micro or subset.micro_batch_size)
        return measure_variance(module, loss, subset, runtime, settings, num_samples=len(subset.dataset))


def numbers(found: GradientVariance) -> list[float]:
    curves = (found.with_replacement, found.without_replacement)
    values = [found.noise.grad_sq_norm, found.noise.covariance_trace, found.moments.trace, found.moments.grad_sq_norm]
    for curve in curves:
        values += [number for point in curve.points for number in (point.variance, *point.interval, point.theory)]
        values += [curve.slope.value, *curve.slope.interval]
    return values


@pytest.mark.parametrize(("kind", "world_size"), [("classes", 2), ("classes", 4), ("images", 3), ("tokens", 3)])
def test_any_number_of_ranks_measures_the_same(ranks, kind, world_size):
    """10 draws over 4 ranks; batch norm and dropout, and tokens, of which samples have unequal numbers."""
    (alone,) = ranks(1).run(measure, kind)
    found, *others = ranks(world_size).run(measure, kind)
    assert others == [None] * (world_size - 1)
    assert numbers(found) == pytest.approx(numbers(alone), rel=1e-10)


def test_how_many_samples_share_a_backward_pass_changes_nothing():
    """Gradients are taken of 1 or 2 samples at once, in batches of 1, 5 and 12."""
    first, *others = [numbers(measure("tokens", micro=micro)) for micro in (1, 5, 12)]
    for other in others:
        assert other == pytest.approx(first, rel=1e-10)


def test_on_the_textbook_regression_everything_is_as_the_closed_form_says():
    """B = 1, 6, 36, 216 of 216 samples: the last has no variance without replacement."""
    module, _, subset = regression()
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()]).numpy()
    noise = LeastSquares(subset.dataset.inputs, subset.dataset.targets).gradient_noise(weights)
    found = measure("regression", VarianceSettings(seed=0, batch_sizes=(1, 6, 36, 216), replications=3))
    assert found.noise.grad_sq_norm == pytest.approx(noise.grad_sq_norm, rel=1e-10)
    assert found.noise.covariance_trace == pytest.approx(noise.covariance_trace, rel=1e-10)
    assert found.moments.is_exact
    assert found.moments.noise_scale == pytest.approx(noise.simple_noise_scale, rel=1e-10)
    for curve in (found.with_replacement, found.without_replacement):
        assert curve.slope.includes_law
        assert curve.slope.value == pytest.approx(-1, abs=0.15)
        for point in curve.points:
            truth = noise.mini_batch_variance(point.batch_size, replacement=curve.replacement)
            assert point.theory == pytest.approx(truth, rel=1e-10)
            if truth:
                assert point.interval[0] * (1 - 1e-10) <= truth <= point.interval[1] * (1 + 1e-10)
    one, *_, whole = found.without_replacement.points
    assert one.variance == pytest.approx(noise.covariance_trace, rel=1e-10), "every sample comes once"
    assert whole.variance < 1e-25 * noise.covariance_trace
    assert found.with_replacement.points[-1].ratio == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("kind", ["classes", "images", "tokens"])
def test_the_trace_is_that_of_per_sample_gradients_in_eval_mode(kind):
    """Written down with one backward pass per sample; tokens by the ratio estimator's formula."""
    module, loss, subset = problem(kind)
    module.eval()
    sums, units = [], []
    for number in subset.ids:
        inputs, targets = subset.dataset.fetch(np.array([number]))
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        parts = torch.autograd.grad(loss.loss_per_sample(module(inputs), targets).sum(), list(module.parameters()))
        sums.append(torch.cat([part.reshape(-1) for part in parts]))
        units.append(float(loss.units_per_sample(targets).sum()))
    counts, gradients = torch.tensor(units, dtype=torch.float64), torch.stack(sums)
    mean = gradients.sum(dim=0) / counts.sum()
    deviations = (gradients - counts[:, None] * mean) / counts.mean()
    found = measure(kind)
    assert found.noise.covariance_trace == pytest.approx(float(deviations.square().sum(dim=1).mean()), rel=1e-10)
    assert found.noise.grad_sq_norm == pytest.approx(float(mean @ mean), rel=1e-10)
    assert (counts.unique().numel() > 1) == (kind == "tokens")
    assert not found.moments.is_exact, "24 samples of 40"


def test_of_batches_of_unequal_tokens_the_deviation_is_that_of_their_gradient_to_first_order():
    """Near the mean number of tokens: |sum (s_i - u_i G)|/(B u) against |g_B - G| times the batch's share of tokens."""
    gradients = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tensor([3.0, 4.0, 4.0, 5.0, 4.0, 4.0], dtype=torch.float64)
    sums = gradients * units[:, None]
    mean = sums.sum(dim=0) / units.sum()
    groups = NestedGroups([2])
    for one, count in zip(sums, units, strict=True):
        groups.add((one - count * mean) / units.mean(), 1)
    direct = [
        float((sums[i : i + 2].sum(dim=0) / units[i : i + 2].sum() - mean).square().sum())
        * float(units[i : i + 2].mean() / units.mean()) ** 2
        for i in (0, 2, 4)
    ]
    assert groups.mean_sq_norms()[0] == pytest.approx(sum(direct) / 3, rel=1e-12)


@pytest.mark.parametrize("fails_at", [-1, 1, 9, 60])
def test_weights_buffers_modes_and_generators_are_bit_identical_afterwards(fails_at):
    torch.manual_seed(0)
    module = Restless()
    module.second.eval()
    module(torch.randn(8, 3)).square().sum().backward()
    module.calls, module.fails_at = 0, fails_at
    subset = FixedSubset(ArrayDataset(torch.randn(40, 3), torch.randint(0, 2, (40,))), np.arange(24), 5)
    runtime = Runtime.open()
    before = bits(module)
    expected = contextlib.nullcontext() if fails_at == -1 else pytest.raises(RuntimeError, match="as asked")
    try:
        with expected:
            measure_variance(module, CrossEntropy(), subset, runtime, SETTINGS, num_samples=40)
    finally:
        runtime.close()
    assert fails_at in (-1, module.calls)
    assert bits(module) == before


def measure_of(targets: torch.Tensor, inputs: torch.Tensor, loss: Any, module: nn.Module) -> GradientVariance | None:
    with Runtime.open() as runtime:
        subset = FixedSubset(ArrayDataset(inputs, targets), np.arange(len(inputs)), 5)
        settings = VarianceSettings(seed=0, batch_sizes=(1, 2), replications=2)
        return measure_variance(module, loss, subset, runtime, settings, num_samples=len(inputs))


def test_samples_without_units_equal_samples_and_broken_ones_are_refused():
    with pytest.raises(ValueError, match="0 units"):
        measure_of(torch.full((4, 2), -100), torch.zeros(4, 2, 3), NextToken(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="All 4 samples have the same gradient"):
        measure_of(torch.zeros(4), torch.zeros(4, 3), SquaredError(), Linear(3, 1, zero_init=True))
    with pytest.raises(FloatingPointError, match="not finite"):
        measure_of(torch.full((4,), torch.inf), torch.zeros(4, 3), SquaredError(), Linear(3, 1))
    with pytest.raises(ValueError, match="only 1 below the 2 samples"):
        measure_of(torch.zeros(2), torch.zeros(2, 3), SquaredError(), Linear(3, 1))

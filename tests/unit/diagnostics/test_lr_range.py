"""The range test: closed form of its smoothing, suggestions on curves whose answer is known, no trace."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.diagnostics import (
    RangeCurve,
    RangeSettings,
    Reading,
    lr_range_test,
    mean_rate,
    read_curve,
    scaling_exponent,
    suggest,
    walk_rates,
)
from tests.restless import Restless, bits

SPECTRA = {
    "one": [3.7],
    "geometric": [2.0**-k for k in range(8)],
    "power law": [1 / k for k in range(1, 201)],
    "outlier": [50.0, *[0.1] * 99],
}


def quadratic(spectrum: list[float], momentum: float) -> tuple[nn.Module, Any, Any]:
    """1/2 sum h theta^2 from theta = 1."""
    h = torch.tensor(spectrum, dtype=torch.float64)
    theta = nn.Parameter(torch.ones_like(h))
    optimizer = torch.optim.SGD([theta], lr=0.1, momentum=momentum)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (h * theta.square()).sum() / 2
        loss.backward()
        return loss

    return nn.ParameterList([theta]), optimizer, closure


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_on_a_quadratic_a_tenth_of_the_rate_at_which_it_diverges_is_stable_and_so_is_the_suggestion(spectrum, momentum):
    limit = 2 * (1 + momentum) / max(spectrum)
    reading = read_curve(lr_range_test(*quadratic(spectrum, momentum)))
    assert reading.divergence / 10 < limit < reading.divergence
    assert suggest([reading]).lr.value < limit / 2


def test_smoothing_is_without_bias_and_its_rates_lag_as_it_does():
    settings = RangeSettings(min=0.01, max=1.0, steps=40, smoothing=0.9)
    keep = 0.9 ** np.arange(40)
    straight = RangeCurve(settings, settings.rates, np.log(settings.rates) * -2, False)
    by_hand = [keep[: i + 1][::-1] @ straight.losses[: i + 1] * (1 - 0.9) / (1 - 0.9 ** (i + 1)) for i in range(40)]
    assert straight.smoothed == pytest.approx(by_hand)
    assert straight.smoothed[0] == straight.losses[0]
    assert straight.smoothed == pytest.approx(np.log(straight.smoothed_rates) * -2)


def of(loss: Callable[[float], float], noise: float = 0.0, seed: int = 0, **settings: Any) -> RangeCurve:
    """The curve of a loss that is a function of log10 of the rate."""
    draws = np.random.default_rng(seed)
    return walk_rates(lambda lr: loss(math.log10(lr)) + noise * draws.normal(), RangeSettings(**settings))


def sigmoid_then_blow_up(log_rate: float) -> float:
    return 2.3 - 2.0 / (1 + math.exp(-4 * (log_rate + 2.0))) + math.exp(8 * (log_rate - 0.2))


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_steepest_descent_the_minimum_and_the_divergence_are_where_they_were_put(noise):
    curve = of(sigmoid_then_blow_up, noise)
    reading = read_curve(curve)
    assert reading.problem is None
    assert math.log10(reading.steepest) == pytest.approx(-2.0, abs=0.25)
    assert -1.2 < math.log10(reading.minimum) < -0.2
    assert curve.diverged
    assert reading.divergence == curve.rates[-1]
    assert 0.2 < math.log10(reading.divergence) < 0.6


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (of(lambda x: 2.3, 0.1), r"the loss never fell: by .* Use a larger batch"),
        (of(lambda x: 2.3), r"the loss never fell: by 0 at best, and only 0.0023 or more is significant"),
        (of(lambda x: 2.3 + 0.01 * x), "the loss never fell"),
        (of(sigmoid_then_blow_up, max=0.01), "the loss still falls at the upper end of the range, 0.01"),
        (of(sigmoid_then_blow_up, min=1.0), r"diverged after 19 of 100 steps, at 2\.31: too early to detect a descent"),
        (of(sigmoid_then_blow_up, min=0.02), "the loss falls fastest at the lower end of the range, 0.02"),
        (of(lambda x: math.nan), "the loss diverged after 1 of 100 steps, at 1e-05"),
    ],
)
def test_a_curve_that_shows_nothing_gives_the_reason_and_no_rate(curve, said):
    reading = read_curve(curve)
    assert reading.steepest is None
    assert re.search(said, reading.problem), reading.problem


def test_noise_around_a_loss_of_zero_is_no_divergence():
    """Four times the best of a loss that noise takes below zero would be any loss at all."""
    assert not any(of(lambda x: 0.5, noise=1.0, seed=seed).diverged for seed in range(10))
    assert all(of(lambda x: 0.5 + max(0.0, 100.0 * x), noise=1.0, seed=seed).diverged for seed in range(10))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min": 1.0, "max": 0.1}, "min=1, max=0.1: rates grow"),
        ({"min": 0.0}, "greater than 0"),
        ({"max": math.inf}, "finite number"),
        ({"smoothing": 1.0}, "less than 1"),
        ({"diverged_at": 1.0}, "greater than 1"),
        ({"steps": 29}, "steps=29: smoothing=0.9 spans 10 steps, .* Use 30 or more"),
    ],
)
def test_settings_without_a_test_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RangeSettings(**settings)


def test_a_suggestion_is_at_most_a_tenth_of_the_rate_at_which_most_seeds_diverge():
    fast = [Reading(0.4, 0.6, 2.0), Reading(0.4, 0.6, 8.0), Reading(0.4, 0.6, None)]
    assert suggest(fast).lr.value == pytest.approx(0.4), "exactly the tenth: nothing is above it"
    assert suggest([fast[0], *fast]).lr.value == pytest.approx(0.1 * 32 ** (1 / 3))
    assert suggest([fast[0], fast[2], fast[2]]).lr.value == pytest.approx(0.4), "one seed of three is no rule"


def test_most_seeds_must_show_a_descent():
    lost = Reading(None, None, None, "the loss never fell")
    assert suggest([Reading(0.1, 0.3, 9.0), lost]).lr is None
    assert suggest([lost, Reading(0.1, 0.3, 9.0)]).reason == "1 of 2 seeds show none: the loss never fell"
    found = suggest([Reading(0.1, 0.3, 9.0), lost, Reading(0.4, 0.6, 9.0)])
    assert found.lr.value == pytest.approx(0.2)
    assert found.reason == "the loss falls fastest there (geometric mean of 2 seeds)"


def test_the_scaling_exponent_is_the_slope_with_the_interval_of_least_squares():
    draws = np.random.default_rng(0)
    sizes = np.repeat([16, 64, 256], 3)
    rates = 0.01 * np.sqrt(sizes) * np.exp(0.1 * draws.normal(size=9))
    found = scaling_exponent(list(zip(sizes, rates, strict=True)))
    design = np.stack([np.ones(9), np.log(sizes)], axis=1)
    weights, residual, *_ = np.linalg.lstsq(design, np.log(rates), rcond=None)
    error = math.sqrt(residual[0] / 7 * np.linalg.inv(design.T @ design)[1, 1])
    reach = 2.364624251592785 * error  # t(7) at 97.5 %
    assert (found.value, found.high - found.value) == pytest.approx((weights[1], reach))
    assert found.low < 0.5 < found.high
    assert scaling_exponent([(8, 0.1), (16, 0.2)]) is None
    assert scaling_exponent([(8, 0.1)] * 4) is None
    assert scaling_exponent([]) is None


def test_rates_of_seeds_have_a_geometric_mean_and_students_interval():
    rates = [0.1, 0.2, 0.4]
    found = mean_rate(rates)
    reach = 4.302652729911275 * math.log(2) / math.sqrt(3)  # t(2) at 97.5 %
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 * math.exp(-reach), 0.2 * math.exp(reach)))
    assert math.isnan(mean_rate([0.1]).low)


ENDINGS = {"finished": None, "diverged": math.nan, "exception": RuntimeError, "Ctrl-C": KeyboardInterrupt}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_everything_is_bit_identical_afterwards_on_every_way_out(make, steps_before, ending):
    torch.manual_seed(0)
    module = Restless().double()
    module.unused = nn.Linear(1, 1).double()
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(module.parameters(), lr=0.01, **options)
    inputs = torch.randn(8, 3, dtype=torch.float64)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (module(inputs) - 1).square().mean()
        loss.backward()
        if module.calls == 20 and ENDINGS[ending] is not None:
            if ending == "diverged":
                return ENDINGS[ending]
            raise ENDINGS[ending]
        return loss

    for _ in range(steps_before):
        closure()
        optimizer.step()
    module.second.eval()
    module.calls = 0
    before = bits(module, optimizer)
    if ending in ("exception", "Ctrl-C"):
        with pytest.raises(ENDINGS[ending]):
            lr_range_test(module, optimizer, closure)
    else:
        curve = lr_range_test(module, optimizer, closure, RangeSettings(max=1e-3))
        assert (curve.diverged, len(curve.rates)) == ((True, 20) if ending == "diverged" else (False, 100))
    assert module.calls >= 20
    assert bits(module, optimizer) == before

"""The range test: closed forms of smoothing and stability, suggestions on curves whose answer is known, no trace."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.diagnostics import (
    Momentum,
    RangeCurve,
    RangeSettings,
    Reading,
    mean_rate,
    momentum_of,
    read_curve,
    scaling_exponent,
    stability_limit,
    suggest,
    walk_rates,
)
from largebatch.diagnostics.learning_rate.sweep import lr_range_test

SPECTRA = {
    "one": [3.7],
    "geometric": [2.0**-k for k in range(8)],
    "power law": [1 / k for k in range(1, 201)],
    "flat": list(np.linspace(0.8, 1.2, 10)),
    "outlier": [50.0, *[0.1] * 99],
    "close": [1.0, 0.95, 0.9],
}


def quadratic(spectrum: list[float], noise: float, seed: int = 0, **sgd: Any) -> tuple[nn.Module, Any, Any]:
    """1/2 sum h theta^2 + e'theta from theta = 1, where the noise e of a step varies as noise^2 h."""
    h = torch.tensor(spectrum, dtype=torch.float64)
    theta = nn.Parameter(torch.ones_like(h))
    optimizer = torch.optim.SGD([theta], lr=0.1, **sgd)
    generator = torch.Generator().manual_seed(seed)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        e = noise * h.sqrt() * torch.randn(len(h), dtype=torch.float64, generator=generator)
        loss = (h * theta.square()).sum() / 2 + e @ theta
        loss.backward()
        return loss

    return nn.ParameterList([theta]), optimizer, closure


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_on_a_quadratic_the_largest_stable_rate_is_found_within_ten_per_cent(spectrum, noise):
    # Not 1e-5: a step with exactly 1 / h_max would take the largest curvature out of a quadratic without noise.
    for seed, num_steps in enumerate((60, 100, 150)):
        settings = RangeSettings(lowest=1.1e-5, highest=1000.0, num_steps=num_steps)
        curve = lr_range_test(*quadratic(spectrum, noise, seed), settings)
        assert stability_limit(curve) == pytest.approx(2 / max(spectrum), rel=0.1)


def test_the_rate_at_which_the_loss_diverges_is_several_times_larger():
    """What the estimate is for: by the time that the divergence is seen, 2/h_max is long past."""
    settings = RangeSettings(lowest=1.1e-5, highest=1000.0, num_steps=300)
    curve = lr_range_test(*quadratic([1.0, 0.1], 0.0), settings)
    assert curve.rates[-1] > 4 * 2
    assert stability_limit(curve) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("m", [0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_momentum_moves_the_limit_as_its_roots_say(m, nesterov, noise):
    known = (2 + 2 * m) / (1 + 2 * m) if nesterov else 2 * (1 + m)
    module, optimizer, closure = quadratic(SPECTRA["power law"], noise, momentum=m, nesterov=nesterov)
    momentum = momentum_of(optimizer)
    assert momentum == Momentum(m, nesterov)
    curve = lr_range_test(module, optimizer, closure, RangeSettings(lowest=1.1e-5, highest=1000.0))
    assert stability_limit(curve, momentum) == pytest.approx(known, rel=0.1)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("growth", [1.0, 1.5, 10.0])
def test_the_scaled_curvature_is_where_the_step_has_that_eigenvalue(m, nesterov, growth):
    """The matrix of one step of torch's SGD on h theta^2 / 2, with r = 1, over (theta, v)."""
    h = Momentum(m, nesterov).scaled_curvature(growth)
    step = [[1 - h - m * h, -m * m], [h, m]] if nesterov else [[1 - h, -m], [h, m]]
    assert np.linalg.eigvals(np.array(step)).real.min() == pytest.approx(-growth)


def sgd(**options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=0.1, **options)


def test_only_steps_in_proportion_to_the_gradient_have_a_limit():
    mixed = sgd(momentum=0.5)
    mixed.add_param_group({"params": [torch.zeros(1)], "momentum": 0.9})
    others = [torch.optim.Adam([torch.zeros(1)]), sgd(momentum=0.5, dampening=0.5), sgd(maximize=True), mixed]
    assert [momentum_of(one) for one in others] == [None] * 4


def test_growth_that_does_not_last_tells_no_limit():
    """A loss that saturates, as where a network's units die, and noise that has risen by chance."""
    settings = RangeSettings(smoothing=0.0)
    rates, risen = settings.rates[:50], [*[1.0] * 49, 10.0]
    for held in ([11.0, 12.0, 12.5, 12.6, 12.7, 12.8], [30.0, 90.0, 95.0, 96.0, 97.0, 98.0], [12.0, 5.0, 9.0, 11.0]):
        assert stability_limit(RangeCurve(settings, rates, np.array(risen), True, np.array(held))) is None
    lasting = np.array([40.0, 160.0, 640.0, 2560.0])  # g = 2
    curve = RangeCurve(settings, rates, np.array(risen), True, lasting)
    assert stability_limit(curve) == pytest.approx(rates[-1] * 2 / 3, rel=0.02)
    assert stability_limit(RangeCurve(settings, rates, np.array(risen), False, np.array([]))) is None


def test_smoothing_is_without_bias_and_its_rates_lag_as_it_does():
    settings = RangeSettings(lowest=0.01, highest=1.0, num_steps=40, smoothing=0.9)
    keep = 0.9 ** np.arange(40)
    straight = RangeCurve(settings, settings.rates, np.log(settings.rates) * -2, False, np.array([]))
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
    assert reading.divergence == curve.rates[-1] == 10 * reading.tenth_of_divergence
    assert 0.2 < math.log10(reading.divergence) < 0.6


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (of(lambda x: 2.3, 0.1), r"the loss never fell: by .* Use a larger batch"),
        (of(lambda x: 2.3), r"the loss never fell: by 0 at best, where 0.0023 would be more"),
        (of(lambda x: 2.3 + 0.01 * x), "the loss never fell"),
        (of(sigmoid_then_blow_up, highest=0.01), "the loss still falls at the upper end of the range, 0.01"),
        (of(sigmoid_then_blow_up, lowest=1.0), r"diverged after 19 of 100 steps, at 2\.31: too early to see a descent"),
        (of(sigmoid_then_blow_up, lowest=0.02), "the loss falls fastest at the lower end of the range, 0.02"),
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
        ({"lowest": 1.0, "highest": 0.1}, "min=1, max=0.1: rates grow"),
        ({"lowest": 0.0}, "min=0, max=100: rates grow"),
        ({"highest": math.inf}, "max=inf: rates grow"),
        ({"smoothing": 1.0}, r"smoothing=1: lies in \[0, 1\)"),
        ({"diverged_at": 1.0}, "diverged_at=1: a multiple of the best loss, above 1"),
        ({"num_steps": 29}, "steps=29: smoothing=0.9 looks over 10 steps, .* Use 30 or more"),
    ],
)
def test_settings_without_a_test_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RangeSettings(**settings)


def test_limits_count_where_most_seeds_have_one_and_agree():
    seeds = [Reading(0.01, 0.3, 1.0)] * 3
    assert suggest(seeds, [2.0, 2.1, None]).limit.value == pytest.approx(math.sqrt(2.0 * 2.1))
    for limits in ([2.0, None, None], [2.0, 2.1, 3.1], [None] * 3):
        assert suggest(seeds, limits).limit is None


def test_most_seeds_must_show_a_descent():
    lost = Reading(None, None, None, "the loss never fell")
    assert suggest([Reading(0.1, 0.3, 1.0), lost], [None] * 2).lr is None
    assert suggest([lost, Reading(0.1, 0.3, 1.0)], [None] * 2).reason == "1 of 2 seeds show none: the loss never fell"
    found = suggest([Reading(0.1, 0.3, 1.0), lost, Reading(0.4, 0.6, 1.0)], [None] * 3)
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


class Restless(nn.Module):
    """Writes buffers, changes modes and settings, draws from every generator, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.frozen = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(1, 1)
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return self.norm(self.linear(inputs)) * (1 + 0.01 * noise)


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a test may move, as bits, and which tensors hold it."""
    parameters = list(module.parameters())
    states = [optimizer.state.get(one, {}) for one in parameters]
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002
    tensors = module.state_dict(keep_vars=True).items()
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {
        "weights": [(name, id(one), one.detach().numpy().tobytes()) for name, one in tensors],
        "gradients": [None if one.grad is None else (id(one.grad), one.grad.numpy().tobytes()) for one in parameters],
        "modes": [part.training for part in module.modules()],
        "states": [{key: (id(one), one.numpy().tobytes()) for key, one in state.items()} for state in states],
        "stateful": sum(map(bool, states)) == len(optimizer.state),
        "settings": settings,
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (words.tobytes(), place),
        "python": random.getstate(),
    }


ENDINGS = {"finished": None, "diverged": math.nan, "exception": RuntimeError, "Ctrl-C": KeyboardInterrupt}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_everything_is_bit_identical_afterwards_on_every_way_out(make, steps_before, ending):
    torch.manual_seed(0)
    module = Restless().double()
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
    module.linear.eval()
    module.calls = 0
    before = everything(module, optimizer)
    if ending in ("exception", "Ctrl-C"):
        with pytest.raises(ENDINGS[ending]):
            lr_range_test(module, optimizer, closure)
    else:
        curve = lr_range_test(module, optimizer, closure, RangeSettings(highest=1e-3))
        assert (curve.diverged, len(curve.rates)) == ((True, 20) if ending == "diverged" else (False, 100))
    assert module.calls >= 20
    assert everything(module, optimizer) == before

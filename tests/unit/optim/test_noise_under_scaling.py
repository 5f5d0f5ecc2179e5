"""The SDE rule of adaptive optimizers (Malladi et al. 2022) by Monte Carlo: gradients that are nothing but noise."""

from __future__ import annotations

import numpy as np
import pytest

from largebatch.batch import JointRule
from largebatch.experiments.bench.scaling import BASE_BATCH, RULES, Settings, ratio, squares

pytestmark = pytest.mark.quick

SETTINGS = Settings(coordinates=10_000, samples=1600)
KAPPA = 4


def test_under_the_sde_rule_noise_spreads_alike_over_equal_samples_and_under_the_linear_rule_kappa_times_as_far():
    """A short `largebatch bench scaling`: the relative standard error of a ratio is sqrt(4 / 10,000) = 2 %.

    The rule is of first order: here, at kappa (1 - beta1) = 0.2, its own error is about -4 %.
    """
    base = squares(JointRule(), BASE_BATCH, SETTINGS)
    found = {name: ratio(squares(rule, BASE_BATCH * KAPPA, SETTINGS, 1), base) for name, rule in RULES.items()}
    assert found["sde"][1] == pytest.approx(0.02, rel=0.1)
    assert found["sde"][0] == pytest.approx(1, abs=0.1)
    assert found["sde, the rate linear"][0] == pytest.approx(KAPPA, abs=0.1 * KAPPA)
    # The rate alone: eps stays as large as the noise that has fallen, and the weights move less.
    assert found["sqrt: the rate alone"][0] < 0.85


def test_the_error_of_a_ratio_is_that_of_repeated_draws():
    generator = np.random.default_rng(0)
    drawn = [ratio(*(generator.standard_normal((2, 400)) ** 2)) for _ in range(400)]
    values, errors = np.array(drawn).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)  # the spread of 400 is known to 3.5 %

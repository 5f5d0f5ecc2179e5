"""The SDE rule of adaptive optimizers (Malladi et al. 2022) by Monte Carlo: gradients that are nothing but noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from largebatch.batch import JointRule, scale_hyperparameters
from largebatch.optim.uncompiled import without_compiler
from largebatch.records.checkpoint.first_state import take_step

pytestmark = pytest.mark.quick

COORDINATES, SAMPLES, KAPPA = 10_000, 1600, 4
BASE = {"lr": 1e-3, "betas": (0.95, 0.99), "eps": 0.3}  # an eps as large as the noise, so that its rule counts


def spread(rule: str | JointRule, batch: int) -> float:
    """The mean square displacement after equal samples; a gradient has the variance 4 / batch per coordinate."""
    values = scale_hyperparameters(BASE, base_batch_size=4, global_batch_size=batch, rule=rule)
    generator = torch.Generator().manual_seed(batch)
    weight = nn.Parameter(torch.zeros(COORDINATES, dtype=torch.float64))
    betas = (values["beta1"].value, values["beta2"].value)
    with without_compiler():
        optimizer = AdamW([weight], values["lr"].value, betas, values["eps"].value, weight_decay=0.0)
    for _ in range(SAMPLES // batch):
        noise = torch.randn(COORDINATES, generator=generator, dtype=torch.float64)
        weight.grad = noise * (4 / batch) ** 0.5
        take_step(optimizer)
    return float(weight.detach().square().mean())


def test_under_the_sde_rule_noise_spreads_alike_over_equal_samples_and_under_the_linear_rule_kappa_times_as_far():
    """The relative error of a mean square over 10,000 coordinates is sqrt(2 / 10,000) = 1.4 %, of a ratio 2 %.

    The rule is of first order: here, at kappa (1 - beta1) = 0.2, its own error is about -4 %.
    """
    small = spread("sde", 4)
    tuned = JointRule("linear", betas=("half_life", "half_life"), eps="sde")
    assert spread("sde", 4 * KAPPA) / small == pytest.approx(1, abs=0.1)
    assert spread(tuned, 4 * KAPPA) / small == pytest.approx(KAPPA, abs=0.1 * KAPPA)
    # The rate alone: eps stays as large as the noise that has fallen, and the weights move less.
    assert spread("sqrt", 4 * KAPPA) / small < 0.85

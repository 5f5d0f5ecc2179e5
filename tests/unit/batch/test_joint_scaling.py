"""What follows the batch: each rule against its formula, its provenance, and itself applied twice."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from largebatch.batch import (
    ADAMW_FORM,
    JOINT_RULES,
    SGD_FORM,
    JointRule,
    OptimizerForm,
    ScaledValue,
    ema_decay,
    scale_hyperparameters,
    scale_memory,
    scale_weight_decay,
)
from largebatch.batch.decay_rules import Decay

pytestmark = pytest.mark.quick

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 2.0}
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3, "clip_norm": 2.0}
SGD_RULE = JointRule("linear", "half_life", weight_decay="timescale", clip_norm="noise")
ADAMW_RULE = JointRule("sqrt", "none", ("half_life", "sde"), "sde", "timescale", "noise")
CASES = {
    "adamw": (ADAMW, ADAMW_RULE, ADAMW_FORM),
    "sgd": (SGD, SGD_RULE, SGD_FORM),
    "nesterov": (SGD, SGD_RULE, OptimizerForm(True, True, nesterov=True)),
}


def scaled(base: dict[str, Any], rule: Any, form: OptimizerForm, old: int, new: int) -> dict[str, ScaledValue]:
    return scale_hyperparameters(base, base_batch_size=old, global_batch_size=new, rule=rule, form=form)


def as_base(values: dict[str, ScaledValue]) -> dict[str, Any]:
    plain: dict[str, Any] = {name: one.value for name, one in values.items()}
    if "beta1" in plain:
        plain["betas"] = (plain.pop("beta1"), plain.pop("beta2"))
    return plain


@pytest.mark.parametrize("name", CASES)
def test_rescaling_twice_is_rescaling_once_and_back_is_undone(name: str):
    base, rule, form = CASES[name]
    for first, second in itertools.product((32, 61, 101), (48, 500)):
        there = as_base(scaled(base, rule, form, 48, first))
        twice, once = scaled(there, rule, form, first, second), scaled(base, rule, form, 48, second)
        for key, value in once.items():
            # 1 - beta has lost up to three of its digits.
            assert twice[key].value == pytest.approx(value.value, rel=1e-11), key


@pytest.mark.parametrize("name", CASES)
def test_the_provenance_recomputes_every_value(name: str):
    base, rule, form = CASES[name]
    for key, one in scaled(base, rule, form, 32, 77).items():
        known = {"sqrt": math.sqrt, "min": min, "max": max}
        # A difference of numbers near 1, as a hand would compute it, has lost six digits.
        assert eval(one.formula, known, one.inputs) == pytest.approx(one.value, rel=1e-9), key
        assert all(f"{name}={value:g}" in one.explanation for name, value in one.inputs.items())
        assert all(name in one.formula for name in one.inputs)


def test_the_rules_have_the_values_of_their_formulas():
    found = scaled(ADAMW, "sde_timescale", ADAMW_FORM, 256, 1024)
    assert found["lr"].value == 2e-3
    assert (found["beta1"].value, found["beta2"].value) == (pytest.approx(0.6561), pytest.approx(0.999**4))
    assert found["eps"].value == 5e-9
    assert found["weight_decay"].value == pytest.approx((1 - (1 - 1e-4) ** 4) / 2e-3, rel=1e-11)
    assert found["clip_norm"].value == 2.0  # its rule is none
    sgd = scaled(SGD, SGD_RULE, SGD_FORM, 32, 128)
    assert sgd["momentum"].value == pytest.approx(0.6561)
    assert sgd["lr"].value == pytest.approx(4 * 0.05 * (1 - 0.6561) / 0.1)
    assert sgd["clip_norm"].value == 1.0
    # Under the linear rule the decay of SGD stays, to first order in lr lambda / (1 - m).
    assert sgd["weight_decay"].value == pytest.approx(5e-3, rel=0.02)
    assert sgd["weight_decay"].value != pytest.approx(5e-3, rel=1e-4)


def test_only_a_momentum_that_adds_up_takes_the_rate_with_it():
    rule = JointRule("linear", "half_life")
    base = {"lr": 0.1, "momentum": 0.9}
    assert scaled(base, rule, ADAMW_FORM, 1, 2)["lr"].value == 0.2
    assert scaled(base, rule, SGD_FORM, 1, 2)["lr"].value == pytest.approx(0.2 * 0.19 / 0.1)
    assert scaled(base, "linear", SGD_FORM, 1, 2)["lr"].value == 0.2


def test_the_published_rule_meets_the_half_life_to_first_order_and_ends():
    def beta(rule: str, new: int) -> float:
        return scale_memory(0.999, base_batch_size=1, global_batch_size=new, rule=rule).value

    gaps = [beta("half_life", kappa) - beta("sde", kappa) for kappa in (2, 4, 8)]
    # The second order is kappa (kappa - 1) / 2 (1 - beta)^2.
    assert gaps == [pytest.approx(k * (k - 1) / 2 * 1e-6, rel=0.01) for k in (2, 4, 8)]
    with pytest.raises(ValueError, match=r"beta: 1 - 1001 \* \(1 - 0\.999\) = -0\.001: .* beyond 1000 times"):
        beta("sde", 1001)


@pytest.mark.parametrize(("beta", "kappa"), [(0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000), (0.6, 2.5), (0.0, 1)])
def test_the_published_rule_ends_where_nothing_is_left_whichever_way_its_factors_are_rounded(beta: float, kappa: float):
    """1 - 20 (1 - 0.95) is -9e-16 in float64, and 1 - 10 (1 - 0.9) is 2e-16."""

    def left(new: int) -> float:
        return scale_memory(beta, base_batch_size=10_000, global_batch_size=new, rule="sde").value

    assert left(round(10_000 * kappa)) == 0.0
    assert left(round(10_000 * kappa) - 1) == pytest.approx(1e-4 * (1 - beta), rel=1e-6)
    with pytest.raises(ValueError, match="has no value beyond"):
        left(round(10_000 * kappa) + 1)


def test_a_half_life_in_samples_needs_no_base_and_bounds_hold_it():
    def beta(new: int, bounds: tuple[float, float]) -> float:
        return scale_memory(0.5, base_batch_size=7, global_batch_size=new, rule=1000, bounds=bounds).value

    assert beta(1000, (0.0, 1.0)) == 0.5
    assert beta(1, (0.0, 1.0)) ** 1000 == pytest.approx(0.5, rel=1e-12)
    assert (beta(1, (0.25, 0.999)), beta(10_000, (0.25, 0.999))) == (0.999, 0.25)
    assert scale_memory(0.1, base_batch_size=7, global_batch_size=9, rule="none", bounds=(0.5, 1)).value == 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_decay_of_momentum_sgd_is_that_of_its_recursion(nesterov: bool):
    decay, lr, strength = Decay(True, 0.9, nesterov), 0.05, 5e-3
    weight, velocity = 1.0, 0.0
    for _ in range(600):
        before, grad = weight, strength * weight
        velocity = 0.9 * velocity + grad
        weight -= lr * (grad + 0.9 * velocity if nesterov else velocity)
    assert 1 - weight / before == pytest.approx(decay.lost(lr, strength), rel=1e-11)
    assert decay.weight_decay(lr, decay.lost(lr, strength)) == pytest.approx(strength, rel=1e-12)


def test_the_base_batch_keeps_every_base_value():
    for base, rule, form in CASES.values():
        found = as_base(scaled(base, rule, form, 333, 333))
        for key, value in base.items():
            assert found[key] == pytest.approx(value, rel=1e-14), key


def test_an_average_of_weights_keeps_its_half_life():
    assert ema_decay(64, decay=0.9, decay_batch_size=32).value == pytest.approx(0.81)
    assert ema_decay(64, half_life=32).value == 0.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaled(ADAMW, "joint", ADAMW_FORM, 1, 2), "'joint' is no joint rule. Choose one of none, linear"),
        (lambda: scaled({"lr": 1.0, "betas": (0.9, 1.0)}, "sde", ADAMW_FORM, 1, 2), r"beta2=1.0: .* in \[0, 1\)"),
        (lambda: scaled(SGD, JointRule(momentum="ema"), SGD_FORM, 1, 2), "'ema' is no rule of momentum"),
        (lambda: scaled(SGD, JointRule(momentum=0), SGD_FORM, 1, 2), "half-life of 0 samples"),
        (lambda: scaled(ADAMW, JointRule(eps="noise"), ADAMW_FORM, 1, 2), "'noise' is no rule of eps"),
        (lambda: scaled({**ADAMW, "lr": 20.0}, "sde_timescale", ADAMW_FORM, 1, 2), "would swing"),
        (lambda: scaled(SGD | {"weight_decay": 0.5}, SGD_RULE, SGD_FORM, 1, 2), "would swing"),
        (lambda: scaled(SGD, JointRule("linear", weight_decay="timescale"), SGD_FORM, 1, 200), "Scale the momentum"),
        (lambda: scale_weight_decay(0.1, base_lr=1, lr=1, base_batch_size=0, global_batch_size=1, rule="timescale"),
         "at least 1 sample"),
    ],
)  # fmt: skip
def test_a_value_that_a_rule_cannot_scale_is_refused(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_each_joint_rule_is_the_file_of_its_name():
    from largebatch.run.config.reading import parse_config
    from tests.unit.composing import compose_run

    for name, rule in JOINT_RULES.items():
        config = parse_config(compose_run(f"scaling={name}")).scaling
        assert JointRule(config.rule, config.momentum, config.beta_rules, config.eps, config.weight_decay) == rule

"""Learning rate as a function of the batch size, with its provenance."""

from __future__ import annotations

import itertools
import math

import pytest

from largebatch.batch.scaling import SCALING_RULES, ScaledValue, scale_lr

pytestmark = pytest.mark.quick


def scaled(base_lr: float, base: int, batch: int, rule: str) -> float:
    return scale_lr(base_lr, base_batch_size=base, global_batch_size=batch, rule=rule).value


@pytest.mark.parametrize(
    ("batch", "lr"),
    # Goyal et al. 2017: 0.1 at 256 images, times k for k times the batch.
    [
        (64, 0.025),
        (128, 0.05),
        (256, 0.1),
        (512, 0.2),
        (1024, 0.4),
        (2048, 0.8),
        (4096, 1.6),
        (8192, 3.2),
        (65536, 25.6),
    ],
)
def test_the_linear_rule_gives_the_rates_of_goyal_et_al(batch: int, lr: float):
    assert scaled(0.1, 256, batch, "linear") == pytest.approx(lr, rel=1e-15)


def test_the_square_root_rule_gives_their_ablation_too():
    # "8k, eta = 0.1 sqrt(32)" in Goyal et al. 2017.
    assert scaled(0.1, 256, 8192, "sqrt") == pytest.approx(0.1 * 32**0.5, rel=1e-15)
    # A power of four is exact: 16 times the batch, 4 times the rate.
    assert scaled(6.25e-4, 512, 8192, "sqrt") == 2.5e-3


@pytest.mark.parametrize("batch", [1, 17, 10**9])
def test_no_rule_leaves_the_rate_as_it_is(batch: int):
    assert scaled(0.3, 256, batch, "none") == 0.3


@pytest.mark.parametrize("rule", SCALING_RULES)
def test_the_base_batch_keeps_the_base_rate(rule: str):
    assert scaled(0.1, 333, 333, rule) == 0.1


@pytest.mark.parametrize("rule", SCALING_RULES)
def test_scaling_twice_is_scaling_once(rule: str):
    for first, second in itertools.product((2, 3, 7, 64), repeat=2):
        there = scaled(scaled(0.1, 32, 32 * first, rule), 32 * first, 32 * first * second, rule)
        assert there == pytest.approx(scaled(0.1, 32, 32 * first * second, rule), rel=1e-14)


@pytest.mark.parametrize("rule", SCALING_RULES)
def test_scaling_back_undoes_scaling(rule: str):
    assert scaled(scaled(0.1, 48, 1000, rule), 1000, 48, rule) == pytest.approx(0.1, rel=1e-14)


def test_a_batch_below_the_base_batch_lowers_the_rate():
    assert scaled(0.1, 256, 32, "linear") == 0.0125
    assert scaled(0.1, 256, 64, "sqrt") == 0.05


@pytest.mark.parametrize("rule", SCALING_RULES)
def test_the_provenance_recomputes_the_value(rule: str):
    result = scale_lr(0.05, base_batch_size=32, global_batch_size=718, rule=rule)
    assert result.rule == rule
    assert eval(result.formula, {"sqrt": math.sqrt}, result.inputs) == pytest.approx(result.value, rel=1e-15)
    assert set(result.inputs) == {
        name for name in ("base_lr", "global_batch_size", "base_batch_size") if name in result.formula
    }
    assert all(f"{name}={value:g}" in result.explanation for name, value in result.inputs.items())


def test_a_scaled_value_cannot_be_changed():
    with pytest.raises(AttributeError):
        ScaledValue(0.1, "none", "base_lr").value = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "Linear"}, "rule='Linear' is not a scaling rule. Choose one of none, linear, sqrt"),
        ({"base_lr": 0.0}, "base_lr=0.0: a learning rate is positive and finite"),
        ({"base_lr": -0.1}, "base_lr=-0.1"),
        ({"base_lr": math.nan}, "base_lr=nan"),
        ({"base_lr": math.inf}, "base_lr=inf"),
        ({"base_batch_size": 0}, "base_batch_size=0, global_batch_size=64: a batch has at least 1 sample"),
        ({"global_batch_size": -1}, "base_batch_size=32, global_batch_size=-1"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(change: dict, message: str):
    arguments = {"base_lr": 0.1, "base_batch_size": 32, "global_batch_size": 64, "rule": "linear"} | change
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        scale_lr(arguments.pop("base_lr"), **arguments)

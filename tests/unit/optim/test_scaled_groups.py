"""Real optimizers under the scaling rules: what is left of a gradient does not depend on the batch, nor on a ramp."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RMSprop

from largebatch.batch.joint_scaling import JointRule
from largebatch.experiments.verify.scaling import Kept, compare_batch
from largebatch.optim import LAMB, LARS, MuonWithAdamW, follow_batch, keep_lr_ratios, set_lr
from largebatch.optim.follow_batch import probed_of
from largebatch.optim.memory_probe import probe
from largebatch.optim.scaled_groups import ScaledGroups, StageBatch
from largebatch.optim.uncompiled import without_compiler
from largebatch.records.checkpoint.first_state import take_step
from largebatch.run.following import Following

pytestmark = pytest.mark.quick

ALL = JointRule("linear", "half_life", ("half_life", "half_life"), "sde", "timescale")


class OwnLion(Optimizer):
    """Of a user: an average by beta2, and beta1 that is no memory."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                state = self.state[one]
                average = state.setdefault("average", torch.zeros_like(one))
                direction = average.lerp(one.grad, 1 - group["betas"][0]).sign()
                one.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)
                average.lerp_(one.grad, 1 - group["betas"][1])


def of(kind: Any, **options: Any) -> Callable[[list[dict[str, Any]]], Optimizer]:
    def make(groups: list[dict[str, Any]]) -> Optimizer:
        with without_compiler():  # which takes seconds to import
            return kind(groups, lr=0.01, **options)

    return make


# class -> the rules that are refused, whether momentum adds up, how many quantities a rule keeps at another batch.
OPTIMIZERS = {
    "sgd": (of(SGD, momentum=0.9), set(), True, 4),
    "dampened": (of(SGD, momentum=0.9, dampening=0.5), {"weight_decay"}, True, 3),
    "nesterov": (of(SGD, momentum=0.9, nesterov=True), set(), True, 3),
    "adam": (of(Adam), {"weight_decay"}, False, 4),
    "adamw": (of(AdamW, betas=(0.8, 0.95)), set(), False, 5),
    "adamax": (of(Adamax), {"beta2", "weight_decay"}, False, 4),
    "rmsprop": (of(RMSprop, momentum=0.9), {"weight_decay"}, True, 3),
    "lars": (of(LARS, compile=False), {"weight_decay"}, True, 3),
    "lars outside": (of(LARS, compile=False, lr_placement="outside"), {"weight_decay"}, True, 3),
    "lars nesterov": (of(LARS, compile=False, nesterov=True), {"weight_decay"}, True, 2),
    "lars clip": (of(LARS, compile=False, clip=True), {"weight_decay", "momentum"}, True, 3),
    "lamb": (of(LAMB, compile=False), {"weight_decay"}, False, 4),
    "lamb v3": (of(LAMB, compile=False, bias_correction=False), {"weight_decay"}, False, 4),
    "lamb sums": (of(LAMB, compile=False, grad_averaging=False), {"weight_decay", "beta1"}, False, 4),
    "muon": (of(MuonWithAdamW), set(), False, 4),
    "own": (of(OwnLion), {"beta1"}, False, 3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_left_of_a_gradient_does_not_depend_on_the_batch(name: str):
    make, refused, adds, count = OPTIMIZERS[name]
    probed = probe(make)
    assert (set(probed.refusals), probed.form.adds) == (refused, adds)
    decay = 0.0 if "weight_decay" in refused else 0.01
    following = Following(ALL, {"lr": 0.01, **probed.values, "weight_decay": decay}, 6, probed)
    for batch in (18, 2):
        found = list(compare_batch(make, following, batch))
        promised = [one for one in found if one.promised is not None]
        assert len(promised) == count, found
        assert not [one for one in promised if one.fails]


@pytest.mark.parametrize("name", ["nesterov", "adamw", "lars outside", "lamb sums", "muon", "own"])
def test_an_optimizer_is_known_by_itself_as_by_its_maker(name: str):
    make, *_ = OPTIMIZERS[name]
    weights = {"hidden.weight": nn.Parameter(torch.ones(2, 2)), "hidden.bias": nn.Parameter(torch.ones(2))}
    groups = [{"params": [one], "param_names": [key], "adapts": True} for key, one in weights.items()]
    assert probed_of(make(groups)) == probe(make)


def test_what_follows_nothing_or_cannot_be_tried_is_refused_with_a_remedy():
    def followed(optimizer: Optimizer, rule: Any, **options: Any) -> ScaledGroups:
        return follow_batch(optimizer, 8, base_batch_size=4, rule=rule, **options)

    weights = [nn.Parameter(torch.ones(2))]
    for kind, rule, message in (
        (SGD, "linear_half_life", "momentum: its rule has no effect, momentum is 0.0"),
        (Adam, "sde_timescale", "weight_decay: its rule has no effect, weight_decay is 0.0"),
        (OwnLion, "sde", "beta1: no rule is known to hold for OwnLion: none of its states fades by beta1"),
        (RMSprop, "sde", "beta1: its rule has no effect, RMSprop has no beta1"),
        (SGD, JointRule(clip_norm="noise"), "clip_norm: its rule has no effect, clip_norm is None"),
        (SGD, "linaer", "rule='linaer': is no joint rule. Choose one of none, linear"),
    ):
        with pytest.raises(ValueError, match=message):
            followed(kind(weights, lr=0.1), rule)

    class Named(SGD):
        def __init__(self, groups: Any, model: str, **options: Any) -> None:
            assert model == "mine"
            super().__init__(groups, **options)

    named = Named(weights, "mine", lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"Named could not be tried .*'model'\)\. Give make=, which makes one"):
        followed(named, "linear_half_life")
    scaled = followed(named, "linear_half_life", make=of(SGD, momentum=0.9))
    assert named.param_groups[0]["momentum"] == pytest.approx(0.81)
    assert scaled.rate_factor_at(0) == pytest.approx(2 * (1 - 0.81) / (1 - 0.9))


def test_without_its_rule_nothing_is_kept_and_a_broken_rule_is_seen(monkeypatch: pytest.MonkeyPatch):
    make, *_ = OPTIMIZERS["sgd"]
    probed = probe(make)
    base = {"lr": 0.01, **probed.values, "weight_decay": 0.01}
    loose = list(compare_batch(make, Following(JointRule("linear"), base, 6, probed), 18))
    assert all(one.promised is None and one.difference > 1e-6 for one in loose)  # the decay nearly, to first order
    # The linear rule without the sum of the momentum: a gradient would move a weight too little.
    monkeypatch.setattr("largebatch.batch.joint_scaling.rate_with_momentum", lambda rate, *_: rate)
    broken = [one for one in compare_batch(make, Following(ALL, base, 6, probed), 18) if one.fails]
    assert [one.quantity for one in broken] == ["moved by a gradient so far"]
    assert "BROKEN" in broken[0].verdict
    assert isinstance(broken[0], Kept)


def ramped(
    make: Callable[..., Optimizer], rule: JointRule, steps: tuple[int, int], *, every: bool = False
) -> tuple[Any, ...]:
    """A weight of 1 after a gradient, or one in `every` step: steps at a batch of 4, then at 12; and what it had."""
    probed = probe(make)
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = make([{"params": [weight], "adapts": False, "weight_decay": 0.0}])
    stages = [StageBatch(4, 0.01), StageBatch(12, peak(rule, probed))]
    scaled = ScaledGroups(optimizer, rule, probed, base_lr=0.01, base_batch_size=4, stages=stages,
                          stage_at=lambda seen: int(seen >= 4 * steps[0]))  # fmt: skip
    seen = 0
    for number in range(sum(steps)):
        stage = int(number >= steps[0])
        weight.grad = torch.full_like(weight, float(every or number == 0))
        set_lr(optimizer, (0.01, peak(rule, probed))[stage])
        scaled.write(optimizer, seen)
        take_step(optimizer)
        seen += (4, 12)[stage]
    return weight, optimizer, scaled, probed


def peak(rule: JointRule, probed: Any) -> float:
    following = Following(rule, {"lr": 0.01, **probed.values}, 4, probed)
    return following.values(12)["lr"].value


@pytest.mark.parametrize("name", ["sgd", "nesterov", "lars", "lars outside", "lars nesterov", "dampened"])
def test_a_velocity_moves_a_weight_as_far_when_its_batch_grows_on_the_way(name: str):
    make, *_ = OPTIMIZERS[name]
    rule = JointRule("linear", "half_life")
    weight, *_ = ramped(make, rule, (7, 110))
    small, *_ = ramped(make, rule, (330, 0))
    assert torch.allclose(weight, small, rtol=1e-12, atol=0)


def test_the_bias_correction_of_adam_goes_on_where_its_batch_grows():
    rule = JointRule("sqrt", betas=("half_life", "half_life"))
    for kind in ("adam", "adamw", "lamb"):
        weight, optimizer, scaled, _ = ramped(OPTIMIZERS[kind][0], rule, (7, 3))
        beta = optimizer.param_groups[0]["betas"][1]
        counted = float(optimizer.state[weight]["step"])
        # What was there before the first gradient fades by beta2 per step: 7 of them, and 3 of three times the size.
        base = 0.95 if kind == "adamw" else 0.999
        assert beta**counted == pytest.approx(base ** (7 + 3 * 3), rel=1e-6)  # the count is in float32
        scaled.write(optimizer, 10_000)
        assert float(optimizer.state[weight]["step"]) == counted  # once per stage


@pytest.mark.parametrize("betas", [("none", "half_life"), ("half_life", "none"), ("sde", "half_life"), (400, 60)])
def test_where_betas_fade_by_different_rules_a_ramp_leaves_the_steps_of_adam_unbiased(betas: tuple[Any, Any]):
    """Under a gradient that stays, both corrected moments are exact from the first step on: each step is lr long."""
    rule = JointRule("sqrt", betas=betas)
    for kind in ("adam", "adamw"):
        weight, optimizer, *_ = ramped(OPTIMIZERS[kind][0], rule, (7, 3), every=True)
        moved = 7 * 0.01 + 3 * 0.01 * 3**0.5
        assert torch.allclose(1 - weight, torch.full_like(weight, moved), rtol=1e-6, atol=0)  # the count is in float32
        if betas[1] == "half_life":  # the slower one: t is its own
            fades = optimizer.param_groups[0]["betas"][1] ** float(optimizer.state[weight]["step"])
            assert fades == pytest.approx((0.95 if kind == "adamw" else 0.999) ** (7 + 3 * 3), rel=1e-6)


def test_behind_two_stages_whose_momentum_a_bound_holds_a_velocity_has_the_rate_of_the_later_one():
    rule = JointRule("linear", "half_life", beta_bounds=(0.0, 0.9))
    make = of(SGD, momentum=0.9)
    weight, rates = nn.Parameter(torch.ones(1, dtype=torch.float64)), (0.005, 0.01, 0.03 * (1 - 0.9**3) / 0.1)
    optimizer = make([{"params": [weight]}])
    stages = [StageBatch(size, rate) for size, rate in zip((2, 4, 12), rates, strict=True)]
    scaled = ScaledGroups(optimizer, rule, probe(make), base_lr=0.01, base_batch_size=4, stages=stages,
                          stage_at=lambda seen: bisect_right((2, 6), seen))  # fmt: skip
    assert [groups[0]["momentum"] for groups in scaled.values] == [0.9, 0.9, pytest.approx(0.729)]
    for number, seen in enumerate([0, 2, *range(6, 1800, 12)]):
        weight.grad = torch.full_like(weight, float(number == 1))  # the gradient comes in the second stage
        set_lr(optimizer, rates[min(number, 2)])
        scaled.write(optimizer, seen)
        take_step(optimizer)
    assert 1 - weight.item() == pytest.approx(0.01 / (1 - 0.9), rel=1e-12)


@pytest.mark.parametrize("case", ["left in the first stage", "left in the second", "the second is less than a step"])
def test_a_velocity_whose_momentum_a_bound_held_has_the_rate_of_the_stage_that_it_comes_from(case: str):
    """Two stages have the same values. Only the place says which rate the velocity was meant for."""
    rule, make = JointRule("linear", "half_life", beta_bounds=(0.0, 0.9)), of(SGD, momentum=0.9)
    weight, last = nn.Parameter(torch.ones(1, dtype=torch.float64)), StageBatch(12, 0.03 * (1 - 0.9**3) / 0.1)
    optimizer, places = make([{"params": [weight]}]), (100, 101 if "less" in case else 200)
    scaled = ScaledGroups(optimizer, rule, probe(make), base_lr=0.01, base_batch_size=4,
                          stages=[StageBatch(2, 0.005), StageBatch(4, 0.01), last],
                          stage_at=lambda seen: bisect_right(places, seen))  # fmt: skip
    at, size, rate = (100, 4, 0.01) if "second" in case and "less" not in case else (99, 2, 0.005)
    later = scaled if "less" in case else scaled.left_for(last, at)
    # Branches go on from other positions, too.
    steps = [(scaled, at, rate), *((later, at + size + 12 * number, last.peak_lr) for number in range(110))]
    for number, (groups, seen, lr) in enumerate(steps):
        weight.grad = torch.full_like(weight, float(number == 0))
        set_lr(optimizer, lr)
        groups.write(optimizer, seen)
        take_step(optimizer)
    assert 1 - weight.item() == pytest.approx(rate / (1 - 0.9), rel=1e-12)


def test_groups_keep_their_own_values_and_rates():
    first, second, bias = (nn.Parameter(torch.ones(1)) for _ in range(3))
    groups: list[dict[str, Any]] = [
        {"params": [first]},
        {"params": [second], "lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-4},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=0.01, weight_decay=0.1)
    keep_lr_ratios(optimizer)
    rule = JointRule("sqrt", "none", ("half_life", "half_life"), "sde", "timescale", "noise")
    stages = [StageBatch(4, 0.01, 1.0), StageBatch(16, 0.02, 0.5)]
    scaled = ScaledGroups(optimizer, rule, probe(of(AdamW)), base_lr=0.01, base_batch_size=4, stages=stages,
                          stage_at=lambda seen: int(seen >= 8))  # fmt: skip
    before = [dict(group) for group in optimizer.param_groups]
    scaled.write(optimizer, 0)
    for was, now in zip(before, optimizer.param_groups, strict=True):
        assert {key: pytest.approx(value, rel=1e-12) for key, value in was.items() if key in scaled.keys} == {
            key: now[key] for key in was if key in scaled.keys
        }
    scaled.write(optimizer, 8)
    one, own, none = optimizer.param_groups
    assert one["betas"] == pytest.approx((0.6561, 0.999**4))
    assert own["betas"] == pytest.approx((0.0625, 0.9**4))
    assert (one["eps"], own["eps"]) == (5e-9, 5e-5)
    assert one["weight_decay"] == pytest.approx((1 - 0.999**4) / 0.02)
    assert own["weight_decay"] == pytest.approx((1 - 0.998**4) / 0.04)
    assert none["weight_decay"] == 0.0
    assert (scaled.clip_norm_at(0), scaled.clip_norm_at(8)) == (1.0, 0.5)
    assert scaled.keys == {"betas", "eps", "weight_decay"}
    row = {"beta1": one["betas"][0], "beta2": one["betas"][1], "eps": 5e-9, "weight_decay": one["weight_decay"]}
    assert scaled.row_at(8) == row | {"clip_norm": 0.5}

"""What follows the batch in a run: the decay that a growing batch replaces, and settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.derive import RunNumbers, derive
from tests.unit.composing import compose_run

pytestmark = pytest.mark.quick

GROWS = ("optimizer=adamw", "scaling=sde_timescale", "batch.total=32", "length=30ep", "schedule.warmup=0ep",
         "batch.ramp.in_place_of_decay=true", "batch.ramp.growth=seesaw", "batch.ramp.max_total=400")  # fmt: skip


class ThreeBetas(Optimizer):
    """Of a user: three averages."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float, float] = (0.9, 0.92, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                for number, beta in enumerate(group["betas"]):
                    average = self.state[one].setdefault(f"average{number}", torch.zeros_like(one))
                    one.sub_(group["lr"] * average.lerp_(one.grad, 1 - beta))


def numbers(*overrides: str) -> RunNumbers:
    return derive(parse_config(compose_run(*overrides)), num_samples=1437, world_size=1)


@pytest.mark.parametrize("schedule", ["schedule=step", "schedule=cosine"])
def test_a_batch_that_grows_in_place_of_a_decay_leaves_the_weight_decay_of_its_batch(schedule: str):
    """The decay lowers lr * weight_decay by lowering the rate. What it leaves of the rate is no other rate."""
    grows = numbers(*GROWS, schedule, *(("schedule.gamma=0.25",) if schedule == "schedule=step" else ()))
    assert len(grows.ramp.plans) > 2
    for plan, values in zip(grows.ramp.plans, grows.scaled, strict=True):
        kappa = plan.global_batch_size / 256
        truth = (1 - (1 - 1e-3 * 0.05) ** kappa) / (1e-3 * kappa**0.5)
        assert values["weight_decay"].value == pytest.approx(truth, rel=1e-9)


REFUSED = [
    (["scaling.betas=halflife"], "scaling.betas=halflife: choose none, half_life, sde, .* Did you mean 'half_life'"),
    (["scaling.betas=[half_life]"], r"scaling.betas=\['half_life'\]: a list has two rules, .* this one has 1"),
    (["scaling.betas=[none,sede]"], r"scaling.betas=\['none', 'sede'\]: choose none"),
    (["scaling.betas=7steps"], "a half-life in steps follows no batch"),
    (["scaling.betas=half_life", "optimizer.betas=[0.0,0.9]"], "beta1 is 0. Set it to none, or one rule for each beta"),
    (["scaling.eps=sde", "optimizer.eps=0"], "has no effect, eps is 0. Set it to none, or give another eps"),
    (["scaling.betas=1000000000000000000samples"], r"beta1: 0.5 \*\* .* is 1, and a step that keeps all"),
    (["scaling.betas=half_life", "scaling.beta_bounds=[1,1]"], "bounds below 1"),
    (["scaling.betas=half_life", f"optimizer._target_={__name__}.ThreeBetas", "optimizer.betas=[0.9,0.92,0.99]",
      "~optimizer.eps"], "no rule is known to hold for .*ThreeBetas: it has 3 betas"),
    (["scaling.eps=sde", "optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"],
     "RMSprop has no betas with an eps beside their second moment"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_a_setting_that_follows_nothing_is_refused_by_its_key_once(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        numbers("optimizer=adamw", *overrides)
    lines = caught.value.errors
    assert len(lines) == len({line.partition(":")[2] for line in lines}) <= 2  # of beta1 and of beta2
    assert all(line.startswith("scaling") for line in lines)

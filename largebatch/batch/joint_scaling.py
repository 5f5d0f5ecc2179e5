"""Joint rules: everything that follows the batch, each with its provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from largebatch.batch.decay_rules import Decay, scale_weight_decay
from largebatch.batch.memory_rules import ANY_BETA, require_batches, scale_memory
from largebatch.batch.scaling import ScaledValue, scale_lr

EPS_RULES = {"none": "base_eps", "sde": "base_eps / sqrt(global_batch_size / base_batch_size)"}
CLIP_RULES = {"none": "base_clip_norm", "noise": "base_clip_norm / sqrt(global_batch_size / base_batch_size)"}
_BETAS = ("beta1", "beta2")


@dataclass(frozen=True)
class JointRule:
    """A rule for each hyperparameter that may follow the batch.

    Attributes:
        lr: see `scale_lr`.
        momentum: see `scale_memory`: a name, or a half-life in samples.
        betas: of beta1 and beta2, alike.
        eps: `sde`: eps / sqrt(kappa), as the root of the second moment of noise (Malladi et al. 2022).
        weight_decay: see `scale_weight_decay`.
        clip_norm: `noise`: threshold / sqrt(kappa). Derived here: a mean over B samples of noise with covariance S has
            the root mean square norm sqrt(tr S / B), so the same share of steps is clipped. Where the gradient is more
            than noise its norm falls less, and more steps are clipped.
        beta_bounds: smallest and largest momentum or beta that a rule makes.
    """

    lr: str = "none"
    momentum: str | int = "none"
    betas: tuple[str | int, str | int] = ("none", "none")
    eps: str = "none"
    weight_decay: str = "none"
    clip_norm: str = "none"
    beta_bounds: tuple[float, float] = ANY_BETA

    @property
    def followers(self) -> tuple[str, ...]:
        """The names of what follows besides the rate.

        >>> JointRule("sqrt", betas=("none", "half_life"), eps="sde").followers
        ('beta2', 'eps')
        """
        rules = {"momentum": self.momentum} | dict(zip(_BETAS, self.betas, strict=True))
        rules |= {"eps": self.eps, "weight_decay": self.weight_decay, "clip_norm": self.clip_norm}
        return tuple(name for name, rule in rules.items() if rule != "none")


JOINT_RULES = {
    "none": JointRule(),
    "linear": JointRule("linear"),
    "sqrt": JointRule("sqrt"),
    "sde": JointRule("sqrt", betas=("half_life", "half_life"), eps="sde"),
    "sde_timescale": JointRule("sqrt", betas=("half_life", "half_life"), eps="sde", weight_decay="timescale"),
    "half_life": JointRule("sqrt", betas=("none", "half_life")),
    "linear_half_life": JointRule("linear", momentum="half_life"),
}
"""As conf/scaling/ has them."""


@dataclass(frozen=True)
class OptimizerForm:
    """How an optimizer uses its hyperparameters.

    Attributes:
        adds: whether its momentum adds gradients up, v = m v + g, as torch.optim.SGD and LARS do: then a gradient moves
            a weight by lr / (1 - m) in all, and the rate goes with the momentum. Else it averages them,
            v = m v + (1 - m) g, as Adam and Muon do, and the rate is free of it.
        decays_coupled: whether weight decay is added to the gradient, and goes through the momentum.
        nesterov: whether a step looks ahead along the momentum.
    """

    adds: bool = False
    decays_coupled: bool = False
    nesterov: bool = False


SGD_FORM = OptimizerForm(adds=True, decays_coupled=True)
ADAMW_FORM = OptimizerForm()


def scale_hyperparameters(
    base: Mapping[str, Any],
    *,
    base_batch_size: int,
    global_batch_size: int,
    rule: str | JointRule,
    form: OptimizerForm = ADAMW_FORM,
) -> dict[str, ScaledValue]:
    """The hyperparameters of a batch, given those of the base batch.

    Args:
        base: of the base batch: `lr`, and those of `momentum`, `betas`, `eps`, `weight_decay`, `clip_norm` that there
            are. Others are left out of the result.
        base_batch_size: samples per step at which they were tuned.
        global_batch_size: samples per step.
        rule: a name of `JOINT_RULES`, or a rule.
        form: of the optimizer; `SGD_FORM`, `ADAMW_FORM`, or its own.

    Returns:
        `lr`, `momentum`, `beta1`, `beta2`, `eps`, `weight_decay`, `clip_norm`, as far as `base` has them.

    Raises:
        ValueError: for a value out of range, or a rule that has no value here.

    >>> base = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    >>> scaled = scale_hyperparameters(base, base_batch_size=256, global_batch_size=1024, rule="sde")
    >>> {name: round(one.value, 12) for name, one in scaled.items()}
    {'lr': 0.002, 'beta1': 0.6561, 'beta2': 0.996005996001, 'eps': 5e-09}
    """
    rules = _joint(rule)
    sizes = {"base_batch_size": base_batch_size, "global_batch_size": global_batch_size}
    scaled: dict[str, ScaledValue] = {}
    if "momentum" in base:
        scaled["momentum"] = scale_memory(
            base["momentum"], rule=rules.momentum, name="momentum", bounds=rules.beta_bounds, **sizes
        )
    rate = scale_lr(base["lr"], rule=rules.lr, **sizes)
    if form.adds and "momentum" in scaled:
        rate = rate_with_momentum(rate, base["momentum"], scaled["momentum"])
    scaled = {"lr": rate} | scaled
    for name, beta, one in zip(_BETAS, base.get("betas", ()), rules.betas, strict=False):
        scaled[name] = scale_memory(beta, rule=one, name=name, bounds=rules.beta_bounds, **sizes)
    if "eps" in base:
        scaled["eps"] = _by_noise("eps", base["eps"], rules.eps, EPS_RULES, **sizes)
    if "weight_decay" in base:
        coupled = form.decays_coupled
        before = Decay(coupled, base.get("momentum", 0.0), form.nesterov)
        after = Decay(coupled, scaled["momentum"].value if "momentum" in scaled else 0.0, form.nesterov)
        scaled["weight_decay"] = scale_weight_decay(
            base["weight_decay"],
            base_lr=base["lr"],
            lr=rate.value,
            rule=rules.weight_decay,
            before=before,
            after=after,
            **sizes,
        )
    if base.get("clip_norm") is not None:
        scaled["clip_norm"] = _by_noise("clip_norm", base["clip_norm"], rules.clip_norm, CLIP_RULES, **sizes)
    return scaled


def _joint(rule: str | JointRule) -> JointRule:
    if isinstance(rule, JointRule):
        return rule
    if rule not in JOINT_RULES:
        raise ValueError(
            f"rule={rule!r} is no joint rule. Choose one of {', '.join(JOINT_RULES)}, or give a JointRule."
        )
    return JOINT_RULES[rule]


def rate_with_momentum(rate: ScaledValue, base_momentum: float, momentum: ScaledValue) -> ScaledValue:
    """The rate beside another momentum that adds gradients up.

    With v = m v + g and w = w - lr v a gradient moves the weight by lr (1 + m + m^2 + ...) = lr / (1 - m). The rule of
    the rate is one for this sum: lr' / (1 - m') = rule(lr) / (1 - m).

    >>> rate = scale_lr(0.1, base_batch_size=1, global_batch_size=2, rule="linear")
    >>> round(rate_with_momentum(rate, 0.9, ScaledValue(0.81, "half_life", "")).value, 12)
    0.38
    """
    if momentum.rule == "none":
        return rate
    inputs = rate.inputs | {"momentum": momentum.value, "base_momentum": base_momentum}
    value = rate.value * (1 - momentum.value) / (1 - base_momentum)
    return ScaledValue(value, rate.rule, f"{rate.formula} * (1 - momentum) / (1 - base_momentum)", inputs)


def _by_noise(
    name: str, base: float, rule: str, rules: Mapping[str, str], *, base_batch_size: int, global_batch_size: int
) -> ScaledValue:
    """What follows the norm of noise: its root mean square falls by sqrt(kappa)."""
    require_batches(base_batch_size, global_batch_size)
    if rule not in rules:
        raise ValueError(f"rule={rule!r} is no rule of {name}. Choose one of {', '.join(rules)}.")
    if rule == "none":
        return ScaledValue(base, rule, rules[rule], {f"base_{name}": base})
    inputs = {f"base_{name}": base, "global_batch_size": global_batch_size, "base_batch_size": base_batch_size}
    return ScaledValue(base / math.sqrt(global_batch_size / base_batch_size), rule, rules[rule], inputs)

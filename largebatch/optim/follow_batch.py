"""What follows the batch, in an optimizer of anybody's loop: its groups are read, its kind is tried."""

from __future__ import annotations

import inspect
from operator import index
from typing import Any

from torch.optim import Optimizer

from largebatch.batch.joint_scaling import JOINT_RULES, JointRule, OptimizerForm, scale_hyperparameters
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.optim.learning_rates import keep_lr_ratios
from largebatch.optim.memory_probe import MakeOptimizer, Probed, followed_keys, probe
from largebatch.optim.scaled_groups import ScaledGroups, StageBatch
from largebatch.optim.uncompiled import without_compiler

_HOW = ("foreach", "fused", "capturable", "differentiable", "compile")  # how a machine computes a step, not which step


def follow_batch(
    optimizer: Optimizer,
    batch: int | BatchPlan | BatchRamp,
    *,
    base_batch_size: int,
    rule: str | JointRule,
    clip_norm: float | None = None,
    make: MakeOptimizer | None = None,
) -> ScaledGroups:
    """Give an optimizer the values of its first batch, and know those of the others.

    At the top of a loop, `scaled.write(optimizer, samples_seen)` gives the groups the values of the step, and its rate
    is `lr * scaled.rate_factor_at(samples_seen)`; `ScheduleLR(..., scaled=scaled)` does both. `scaled.clip_norm_at`
    is for the loop to clip by.

    Args:
        optimizer: as it is made, with the values and peak rates of the base batch; a wrapped one is unwrapped.
        batch: samples per step, a plan, or a ramp.
        base_batch_size: samples per step that the optimizer's values are meant for.
        rule: a name of `JOINT_RULES`, or a rule; half-lives in samples.
        clip_norm: largest gradient norm at the base batch.
        make: makes an optimizer of this kind over given groups; None: by its class, with its defaults.

    Raises:
        ValueError: if a rule has no effect on this optimizer or no value, or none is known to hold for it.

    >>> import torch
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    >>> scaled = follow_batch(optimizer, 1024, base_batch_size=256, rule="sde")
    >>> scaled.rate_factor_at(0), optimizer.param_groups[0]["eps"], round(optimizer.param_groups[0]["betas"][0], 4)
    (2.0, 5e-09, 0.6561)
    """
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
    ramp = ramp_of(batch)
    if not isinstance(rule, JointRule) and rule not in JOINT_RULES:
        raise ValueError(f"rule={rule!r}: is no joint rule. Choose one of {', '.join(JOINT_RULES)}, or a JointRule.")
    joint = rule if isinstance(rule, JointRule) else JOINT_RULES[rule]
    base_lr = optimizer.defaults.get("lr")
    if base_lr is None or not float(base_lr) > 0:
        raise ValueError(f"{type(optimizer).__name__}: its rate is {base_lr}, and rules scale one above 0. Give it lr.")
    base_lr, groups_follow = float(base_lr), set(joint.followers) - {"clip_norm"}
    probed = probed_of(optimizer, make) if groups_follow else Probed(OptimizerForm(), {})
    _require_effect(optimizer, joint, probed, clip_norm)
    keep_lr_ratios(optimizer)
    stages = [_stage(plan.global_batch_size, base_lr, base_batch_size, joint, probed, clip_norm) for plan in ramp.plans]
    scaled = ScaledGroups(optimizer, joint, probed, base_lr=base_lr, base_batch_size=base_batch_size, stages=stages,
                          stage_at=ramp.stage_at)  # fmt: skip
    scaled.write(optimizer, 0)
    return scaled


def ramp_of(size: int | BatchPlan | BatchRamp) -> BatchRamp:
    """A batch in any form as a ramp.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(size, (BatchPlan, BatchRamp)):
        return BatchRamp.of(size)
    try:
        whole = index(size)  # also of numpy
    except TypeError:
        raise TypeError(f"global_batch_size={size!r}: give a whole number of samples, a plan or a ramp.") from None
    return BatchRamp.of(BatchPlan.solve(global_batch_size=whole, world_size=1))


def _stage(
    size: int, base_lr: float, base_batch_size: int, rule: JointRule, probed: Probed, clip_norm: float | None
) -> StageBatch:
    values = {key: value for key, value in probed.values.items() if key == "momentum"}
    scaled = scale_hyperparameters(
        values | {"lr": base_lr, "clip_norm": clip_norm},
        base_batch_size=base_batch_size,
        global_batch_size=size,
        rule=rule,
        form=probed.form,
    )
    return StageBatch(size, scaled["lr"].value, scaled["clip_norm"].value if clip_norm is not None else None)


def probed_of(optimizer: Optimizer, make: MakeOptimizer | None = None) -> Probed:
    """What an optimizer does, by trying another one of its class, with its defaults, or what `make` makes.

    Raises:
        ValueError: if it cannot be tried.
    """
    kind: Any = type(optimizer)
    known = inspect.signature(kind).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    given = {
        name: value
        for name, value in optimizer.defaults.items()
        if (takes_all or name in known) and name not in (*_HOW, "lr", "weight_decay")
    }
    plain = {"compile": False} if "compile" in known else {}

    def anew(groups: list[dict[str, Any]]) -> Optimizer:
        with without_compiler():
            made: Optimizer = kind(groups, lr=float(optimizer.defaults["lr"]), **given, **plain)
        return made

    try:
        return probe(make or anew)
    except Exception as error:
        raise ValueError(
            f"{kind.__name__} could not be tried on a 2 x 2 matrix and a vector, which tells what it remembers "
            f"({type(error).__name__}: {error}). Give make=, which makes one over given groups, or let only the rate "
            'follow: rule="linear" or "sqrt".'
        ) from error


def _require_effect(optimizer: Optimizer, rule: JointRule, probed: Probed, clip_norm: float | None) -> None:
    values = _largest(optimizer) | ({} if clip_norm is None else {"clip_norm": clip_norm})
    kind = type(optimizer).__name__
    for name in rule.followers:
        value = values.get(name)
        if name in probed.refusals and value != 0:
            raise ValueError(f"{name}: no rule is known to hold for {kind}: {probed.refusals[name]}. Leave it alone.")
        if not value:
            why = f"{kind} has no {name}" if value is None and name != "clip_norm" else f"{name} is {value}"
            raise ValueError(f"{name}: its rule has no effect, {why}. Leave it alone: {name}'s rule is none.")


def _largest(optimizer: Optimizer) -> dict[str, float]:
    """The largest value of each option over the groups that have it."""
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        own = {key: group[key] for key in followed_keys(group)}
        own |= dict(zip(("beta1", "beta2"), own.pop("betas", ()), strict=False))
        found |= {name: max(float(value), found.get(name, 0.0)) for name, value in own.items()}
    return found

"""Finds out what an optimizer remembers, and in which form, by driving it with one gradient and then none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from largebatch.batch.joint_scaling import OptimizerForm

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
"""Parameter groups -> the optimizer, with its own options."""

_STEPS = 5
_EXACT = 1e-9  # relative; float64 over a few steps
MATRIX, VECTOR = "hidden.weight", "hidden.bias"


@dataclass(frozen=True)
class Response:
    """How an optimizer answers.

    Attributes:
        states: name of the parameter and of its state -> its values after each step, from the impulse on.
        weights: name of the parameter -> its values after each step.
        groups: options of the parameter groups, by name of their parameter.
    """

    states: dict[tuple[str, str], list[Tensor]]
    weights: dict[str, list[Tensor]]
    groups: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Probed:
    """What an optimizer was found to do.

    Attributes:
        form: how it uses its hyperparameters.
        values: its own `momentum`, `betas`, `eps` as far as it has them.
        refusals: hyperparameter -> the reason why no rule is known to hold for it.
        velocities: names of the states that fade by the momentum.
        holds_rate: whether the rate is in the velocity, as in LARS, rather than outside.
        moments: beta1 and beta2 -> names of the states that fade by it.
    """

    form: OptimizerForm
    values: dict[str, Any]
    refusals: dict[str, str] = field(default_factory=dict)
    velocities: tuple[str, ...] = ()
    holds_rate: bool = False
    moments: dict[str, tuple[str, ...]] = field(default_factory=dict)


def respond(
    make: MakeOptimizer,
    values: Mapping[str, Any] | None = None,
    *,
    steps: int = _STEPS,
    impulse: float = 1.0,
    every: bool = False,
    weight_decay: float = 0.0,
) -> Response:
    """Drive a float64 matrix and a vector: a step without gradient, one with, and then `steps` - 1 without.

    Args:
        make: makes the optimizer.
        values: written into its groups, as a run does it, where they have these keys.
        steps: to record, from the impulse on.
        impulse: factor of the gradient.
        every: whether each of them has the gradient.
        weight_decay: of the groups.
    """
    params = {MATRIX: nn.Parameter(_numbers(2, 2)), VECTOR: nn.Parameter(_numbers(2))}
    gradients = {name: impulse * one.detach().flip(0) for name, one in params.items()}
    groups = [
        {"params": [one], "param_names": [name], "adapts": name == MATRIX, "weight_decay": weight_decay, "decays": True}
        for name, one in params.items()
    ]
    optimizer = make(groups)
    for group in optimizer.param_groups:
        group.update({key: value for key, value in (values or {}).items() if key in group})
    found = Response({}, {name: [] for name in params}, {})
    for number in range(steps + 1):
        for name, one in params.items():
            one.grad = gradients[name].clone() if number == 1 or (every and number > 1) else torch.zeros_like(one)
        _step(optimizer)
        if number == 0:
            continue
        for name, one in params.items():
            found.weights[name].append(one.detach().clone())
            for key, value in optimizer.state.get(one, {}).items():
                if isinstance(value, Tensor) and value.shape == one.shape:
                    found.states.setdefault((name, key), []).append(value.detach().double().clone())
    names = {id(one): name for name, one in params.items()}
    for group in optimizer.param_groups:
        found.groups.update({names[id(one)]: group for one in group["params"]})
    return found


def _numbers(*shape: int) -> Tensor:
    return torch.tensor([1.0, 0.5, 0.25, 2.0][: 4 if len(shape) == 2 else 2], dtype=torch.float64).reshape(shape)


def _step(optimizer: Optimizer) -> None:
    step = type(optimizer).step
    with torch.no_grad():  # torch's own wrapper would import its compiler
        inspect.unwrap(step)(optimizer) if step.__module__.startswith("torch.optim.") else optimizer.step()


def probe(make: MakeOptimizer) -> Probed:
    """What `make` makes: which states fade with momentum and betas, whether they add or average, how weights decay."""
    own = respond(make)
    values, refusals, adds, velocities = _values(own.groups), dict[str, str](), False, tuple[str, ...]()
    moments = dict[str, tuple[str, ...]]()
    if (count := len(values.get("betas", (0, 0)))) != 2:
        refusals |= dict.fromkeys(("beta1", "beta2"), f"it has {count} betas, and the rules are those of Adam's two")
        del values["betas"]
    for key, name, number in (("momentum", "momentum", 0), ("betas", "beta1", 0), ("betas", "beta2", 1)):
        if key not in values:
            continue
        kind, states = _kind(make, key, number)
        if kind is None:
            refusals[name] = f"none of its states fades by {name} from step to step, so what it does is not known"
        elif key == "momentum":
            adds, velocities = kind == "adds", states
        else:
            moments[name] = states
        if key == "betas" and kind == "adds":
            refusals[name] = f"a gradient enters its state whole and not times 1 - {name}, which the rate does not know"
    if adds and any(group.get("clip") for group in own.groups.values()):
        refusals["momentum"] = "with clip=true lr is a bound and no factor, so it cannot go with the momentum"
    if (decay := _decay(make, own)) is None:
        refusals["weight_decay"] = (
            "it neither shrinks weights by 1 - lr weight_decay, as AdamW does, nor adds the decay to the gradient of "
            "plain momentum SGD: a trust ratio or a second moment decides how fast they shrink"
        )
    nesterov = adds and any(group.get("nesterov") for group in own.groups.values())
    holds = adds and _scales_with_rate(make, velocities)
    return Probed(OptimizerForm(adds, decay == "coupled", nesterov), values, refusals, velocities, holds, moments)


def _values(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Momentum, betas and eps, each of the first group that has it; eps where it guards a second moment."""
    values: dict[str, Any] = {}
    for group in groups.values():
        for key in followed_keys(group):
            values.setdefault(key, group[key])
    return {key: value for key, value in values.items() if key != "weight_decay"}


def followed_keys(group: Mapping[str, Any]) -> list[str]:
    """The options of a parameter group that may follow the batch."""
    if group.get("muon") is True:  # it has AdamW's options, too, and its eps guards the norm of a matrix
        return ["momentum", "weight_decay"]
    keys = ["betas", "weight_decay"] if "muon" in group else ["momentum", "betas", "weight_decay"]
    keys += ["eps"] if "betas" in group else []
    return [key for key in keys if key in group]


def _kind(make: MakeOptimizer, key: str, number: int) -> tuple[str | None, tuple[str, ...]]:
    """Whether states that fade by this value add gradients up or average them, and their names; None: none does."""
    kinds, names = set(), list[str]()
    first, second = 0.75, 0.5
    answers = [respond(make, {key: _with(key, number, one)}) for one in (first, second)]
    for place in [one for one in answers[0].states if one in answers[1].states]:
        one, other = (answer.states[place] for answer in answers)
        if _fades(one, first) and _fades(other, second):
            adds = torch.allclose(one[0], other[0], rtol=_EXACT, atol=0)
            averages = torch.allclose(one[0] / (1 - first), other[0] / (1 - second), rtol=_EXACT, atol=0)
            kinds.add("adds" if adds else "averages" if averages else None)
            names.append(place[1])
    return (kinds.pop() if len(kinds) == 1 else None), tuple(dict.fromkeys(names))


def _scales_with_rate(make: MakeOptimizer, velocities: Sequence[str]) -> bool:
    once, twice = (respond(make, {"lr": lr}) for lr in (0.25, 0.5))
    places = [place for place in once.states if place[1] in velocities]
    return any(torch.allclose(2 * once.states[one][0], twice.states[one][0], rtol=_EXACT) for one in places)


def _with(key: str, number: int, value: float) -> Any:
    if key == "momentum":
        return value
    others = [0.375, 0.375]
    others[number] = value
    return tuple(others)


def _fades(states: Sequence[Tensor], by: float) -> bool:
    """Whether every element is `by` times that of the step before, from the impulse on."""
    pairs = pairwise(states)
    return bool((states[0] != 0).all()) and all(torch.allclose(by * a, b, rtol=_EXACT, atol=0) for a, b in pairs)


def _decay(make: MakeOptimizer, own: Response) -> str | None:
    """`decoupled`, `coupled` as in momentum SGD, or None: how weights shrink beside a gradient that stays."""
    decay = 0.125
    free, decayed = (respond(make, every=True, weight_decay=one) for one in (0.0, decay))
    kinds = set()
    for name, group in own.groups.items():
        lr = float(group["lr"])
        momentum, nesterov = float(group.get("momentum", 0.0)), bool(group.get("nesterov"))
        start = _numbers(2, 2) if name == MATRIX else _numbers(2)
        gaps = [a - b for a, b in zip(decayed.weights[name], free.weights[name], strict=True)]
        both = [("decoupled", _decoupled), ("coupled", _coupled)]
        for kind, expected in both:
            want = expected(start, free.weights[name], lr, decay, momentum, nesterov)
            if all(torch.allclose(a, b, rtol=1e-7, atol=1e-14) for a, b in zip(gaps, want, strict=True)):
                kinds.add(kind)
                break
        else:
            return None
    return kinds.pop() if len(kinds) == 1 else None


def _decoupled(
    start: Tensor, free: Sequence[Tensor], lr: float, decay: float, momentum: float, nesterov: bool
) -> list[Tensor]:
    """The effect of w = (1 - lr decay) w in each step, the first included, on weights that would move like `free`."""
    kept, gap, gaps = 1 - lr * decay, -lr * decay * start, []
    before = start
    for now in free:
        gap = kept * gap - lr * decay * before
        gaps.append(gap)
        before = now
    return gaps


def _coupled(
    start: Tensor, free: Sequence[Tensor], lr: float, decay: float, momentum: float, nesterov: bool
) -> list[Tensor]:
    """The effect of adding decay w to the gradient of momentum SGD."""
    gap, velocity, gaps = torch.zeros_like(start), torch.zeros_like(start), []
    for before in [start, start, *free[:-1]]:
        grad = decay * (before + gap)
        velocity = momentum * velocity + grad
        gap = gap - lr * (grad + momentum * velocity if nesterov else velocity)
        gaps.append(gap)
    return gaps[1:]

"""One table: the forms of LARS and LAMB, the paths that step them, and the course that every cell is held to."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from largebatch.optim import LAMB, LAMB_PRESETS, LARS, LARS_PRESETS
from largebatch.optim.forms import LambForm, LarsForm
from tests.reference.lars_lamb import (
    FLAGS,
    NUM_STEPS,
    WARMUP_STEPS,
    Course,
    ReferenceLAMB,
    ReferenceLARS,
    Trajectory,
    courses,
    prenormalised,
    warmup_then_cosine,
)

CLASSES: dict[str, Any] = {"LARS": LARS, "LAMB": LAMB}
REFERENCES: dict[str, Any] = {"LARS": ReferenceLARS, "LAMB": ReferenceLAMB}
PRESETS = {"LARS": LARS_PRESETS, "LAMB": LAMB_PRESETS}
SWITCHES: dict[str, Any] = {"LARS": LarsForm, "LAMB": LambForm}
TUNED: dict[str, dict[str, Any]] = {"LARS": {"momentum": 0.9}, "LAMB": {"betas": (0.9, 0.99), "eps": 1e-6}}
STATE = {"LARS": {"momentum_buffer": "velocity"}, "LAMB": {"exp_avg": "m", "exp_avg_sq": "v"}}

# Every option alone, then some together; the others keep the paper's value.
_TRUST, _CLIPPED = {"trust_coefficient": 0.02}, {"clip": True, "trust_coefficient": 0.003}
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "LARS": {
        "joint": {**_TRUST, "denominator": "joint"},
        "outside": {**_TRUST, "lr_placement": "outside"},
        "nesterov": {**_TRUST, "nesterov": True},
        "clip": _CLIPPED,
        "eps": {**_TRUST, "eps": 0.1},
        "undecayed": {**_TRUST, "adapt_undecayed": False},
        "outside-nesterov": {**_TRUST, "lr_placement": "outside", "nesterov": True},
        "outside-clip-eps": {**_CLIPPED, "lr_placement": "outside", "eps": 1e-8},
        "joint-nesterov-clip": {**_CLIPPED, "denominator": "joint", "nesterov": True},
    },
    "LAMB": {
        "uncorrected": {"bias_correction": False},
        "decay-outside": {"decay_placement": "outside"},
        "bounds": {"norm_bounds": (0.5, 1.5)},
        "trust-clip": {"trust_clip": True},
        "max-norm-of-some-steps": {"max_grad_norm": 55.0},
        "summed": {"grad_averaging": False},
        "undecayed": {"adapt_undecayed": False},
        "all": {
            "bias_correction": False,
            "decay_placement": "outside",
            "norm_bounds": (0.0, 1.0),
            "trust_clip": True,
            "max_grad_norm": 10.0,
            "grad_averaging": False,
            "adapt_undecayed": False,
        },
    },
}
# mlperf has the options of paper.
PRESETS_ALONE = [(name, f"preset-{one}") for name, found in PRESETS.items() for one in found if one != "mlperf"]
FORMS: dict[tuple[str, str], dict[str, Any]] = {
    **{(name, form): PRESETS[name][form.removeprefix("preset-")] for name, form in PRESETS_ALONE},
    **{(name, form): options for name, found in _OPTIONS.items() for form, options in found.items()},
}
PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"compile": False},
    "compiled": {"compile": True},
}


def has_path(name: str, form: str, path: str) -> bool:
    """Whether the path has the form; what "fused" does not have goes by foreach."""
    filled = SWITCHES[name](**{key: value for key, value in FORMS[name, form].items() if key != "trust_coefficient"})
    return path != "fused" or filled.is_fused


every_form = pytest.mark.parametrize(("name", "form"), FORMS, ids=map("-".join, FORMS))
every_preset = pytest.mark.parametrize(("name", "form"), PRESETS_ALONE, ids=map("-".join, PRESETS_ALONE))
both = pytest.mark.parametrize("optimizer_class", [LARS, LAMB])

# A step rounds about ten times, by at most 2^-53 or 2^-24: all in one direction, 200 * 10 * 2^-53 = 2e-13; in float32,
# as the random walk that it is, sqrt(200 * 10) / sqrt(12) * 2^-23 = 1.5e-6 if all values were as large as the largest.
# Half of it remains. 0.99 itself is off by 1e-8 in float32, which the second moment remembers for 100 steps.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
SECOND_MOMENT_IN_FLOAT32 = 2e-6

Chosen = tuple[tuple[int, int], ...]
EVERY_COURSE: Chosen = tuple((flags, which) for flags in range(len(FLAGS)) for which in range(5))
"""(index of FLAGS, index of a tensor of `courses`) of every tensor that takes part."""


def course(flags: int, which: int) -> Course:
    return _courses(flags)[which]


_courses = functools.cache(courses)


def steps_of(form: str, dtype: torch.dtype) -> int:
    """The papers take all 200 steps in float64. What an option or rounding adds shows in each step: 60 are enough."""
    return NUM_STEPS if form == "preset-paper" and dtype == torch.float64 else WARMUP_STEPS + 10


def rate_of(name: str, form: str, step: int) -> float:
    """Tensors that adapt move by about as much per step, whatever the trust coefficient; a summed moment is longer."""
    options = FORMS[name, form]
    if name == "LARS":  # with clip the rate of a tensor is not multiplied by the global one
        peak = 0.15 if options.get("clip") else 0.003 / options["trust_coefficient"]
    else:
        peak = 0.015 if options.get("grad_averaging", True) else 0.0015
    return warmup_then_cosine(step, peak)


def make_references(name: str, form: str, chosen: Chosen = EVERY_COURSE) -> list[Any]:
    options = {key: value for key, value in {**TUNED[name], **FORMS[name, form]}.items() if key != "max_grad_norm"}
    return [
        REFERENCES[name](course(at, which).weight, **options, weight_decay=FLAGS[at][0], adapts=FLAGS[at][1])
        for at, which in chosen
    ]


def step_references(name: str, form: str, references: list[Any], grads: list[Any], step: int) -> None:
    shortened = prenormalised(grads, FORMS[name, form].get("max_grad_norm"))
    for reference, grad in zip(references, shortened, strict=True):
        reference.step(grad, rate_of(name, form, step))


@functools.cache
def truth(name: str, form: str, num_steps: int, chosen: Chosen) -> Trajectory:
    references = make_references(name, form, chosen)
    rows: dict[str, list[Any]] = {kind: [] for kind in ("weight", *STATE[name])}
    for step in range(num_steps):
        step_references(name, form, references, [course(*one).grads[step] for one in chosen], step)
        for kind, attribute in {"weight": "weight", **STATE[name]}.items():
            rows[kind].append(np.concatenate([getattr(one, attribute).ravel() for one in references]))
    sizes = [reference.weight.size for reference in references]
    return Trajectory({kind: np.stack(values) for kind, values in rows.items()}, [0, *np.cumsum(sizes)[:-1].tolist()])


def make(
    name: str, form: str, dtype: torch.dtype, path: dict[str, Any], chosen: Chosen = EVERY_COURSE
) -> tuple[list[torch.nn.Parameter], Any]:
    """Parameters, and one optimizer with a group for every combination of flags."""
    params = [torch.nn.Parameter(torch.tensor(course(*one).weight, dtype=dtype)) for one in chosen]
    groups = [
        {
            "params": [param for param, (at, _) in zip(params, chosen, strict=True) if at == number],
            "weight_decay": weight_decay,
            "adapts": adapts,
        }
        for number, (weight_decay, adapts) in enumerate(FLAGS)
    ]
    return params, CLASSES[name](groups, lr=0.0, **path, **TUNED[name], **FORMS[name, form])


def take_step(name: str, form: str, optimizer: Any, params: list[Any], step: int, chosen: Chosen) -> None:
    """A step of the course; the gradients stay what and where they are."""
    for group in optimizer.param_groups:
        group["lr"] = rate_of(name, form, step)
    grads = [
        torch.tensor(course(*one).grads[step], dtype=param.dtype) for one, param in zip(chosen, params, strict=True)
    ]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    given = [param.grad for param in params]
    optimizer.step()
    for param, before, grad in zip(params, given, grads, strict=True):
        assert param.grad is before
        assert torch.equal(param.grad, grad)


def flat(tensors: list[Tensor]) -> Any:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).cpu().numpy()


def assert_true_at_every_step(
    name: str,
    form: str,
    dtype: torch.dtype,
    path: dict[str, Any],
    *,
    num_steps: int | None = None,
    chosen: Chosen = EVERY_COURSE,
) -> None:
    """Weights and state after every step against the float64 reference."""
    num_steps = num_steps or steps_of(form, dtype)
    params, optimizer = make(name, form, dtype, path, chosen)
    rows: dict[str, list[Any]] = {kind: [] for kind in ("weight", *STATE[name])}
    for step in range(num_steps):
        take_step(name, form, optimizer, params, step, chosen)
        rows["weight"].append(flat(params))
        for kind in STATE[name]:
            rows[kind].append(flat([optimizer.state[param][kind] for param in params]))
    true = truth(name, form, num_steps, chosen)
    errors = Trajectory({kind: np.stack(values) for kind, values in rows.items()}, true.starts).worst_errors(true)
    for kind, error in errors.items():
        is_wider = dtype == torch.float32 and kind == "exp_avg_sq"
        assert error <= (SECOND_MOMENT_IN_FLOAT32 if is_wider else TOLERANCES[dtype]), errors


# --- tensors of many sizes, for what has nothing to do with the form

SHAPES = [(40, 30), (5000,), (3, 7, 11), (300, 9), (6,), (), (0,)]


class Labelled(torch.Tensor):
    """A subclass, as DTensor is one."""


def parameter(values: Any, grad: Any) -> torch.nn.Parameter:
    """In float64, with that gradient."""
    param = torch.nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())
    param.grad = torch.as_tensor(grad, dtype=torch.float64)
    return param


def random_pair(seed: int) -> tuple[Tensor, Tensor]:
    """A weight and a gradient of one of four shapes."""
    generator = torch.Generator().manual_seed(seed)
    shape = [(6, 4), (3, 2, 2), (5,), (1,)][seed % 4]
    weight, grad = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return weight, grad


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach()))


def make_params(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_grads(params: list[torch.nn.Parameter], seed: int) -> None:
    """Gradients in the layout of their parameters."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator))


def stepped(optimizer_class: Any, params: list[torch.nn.Parameter], num_steps: int = 4, **options: Any) -> Any:
    optimizer = optimizer_class(params, **{"lr": 0.03, "weight_decay": 0.05, **options})
    for seed in range(num_steps):
        set_grads(params, seed)
        optimizer.step()
    return optimizer


def everything(optimizer: Any, params: list[torch.nn.Parameter]) -> list[Tensor]:
    """Weights, then state."""
    return [*(param.detach() for param in params), *(value for p in params for value in optimizer.state[p].values())]


def assert_same_course(optimizer_class: Any, params: Any, twins: Any, tolerance: float, **options: Any) -> None:
    """The parameters on the path of `options` and their twins in the loop, weights and state."""
    fast, loop = stepped(optimizer_class, params, **options), stepped(optimizer_class, twins, foreach=False)
    for value, expected in zip(everything(fast, params), everything(loop, twins), strict=True):
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * scale)

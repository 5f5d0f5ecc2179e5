"""LARS and LAMB against optax, torch_optimizer and timm: where they are equal, and how far apart where they are not.

Without these packages the tests are skipped; launch/test.sh installs them and makes their absence a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.optim import LAMB, LAMB_PRESETS, LARS, LARS_PRESETS
from tests.reference.oracle_setting import (
    BETAS,
    EPS,
    GRADS,
    MOMENTUM,
    PEAKS,
    SHARES,
    TRUST,
    WEIGHT_DECAY,
    WEIGHTS,
)

ROOT = Path(__file__).resolve().parents[3]
EQUAL = 1e-14  # 30 steps in float64; as measured below 3e-15
START = np.concatenate([weight.ravel() for weight in WEIGHTS])
TUNED: dict[type, dict[str, Any]] = {
    LARS: {"momentum": MOMENTUM, "trust_coefficient": TRUST},
    LAMB: {"betas": BETAS, "eps": EPS},
}
both_schedules = pytest.mark.parametrize("schedule", SHARES)


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        message = f"{package} is not installed; launch/test.sh does it"
        if os.environ.get("LARGEBATCH_TEST_ORACLES") == "required":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="module")
def optax(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """Weights of optax after every step, by case and schedule."""
    need("jax")
    need("optax")
    path = tmp_path_factory.mktemp("optax") / "trajectories.npz"
    command = [sys.executable, "-m", "tests.reference.optax_trajectories", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(path) as saved:
        found = dict(saved)
    return lambda case, schedule: found[f"{case}/{schedule}"]


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """timm.optim.Lars and Lamb, without the rest of timm, which imports torchvision."""
    beside = Path(sys.prefix) / "oracles" / "timm"  # where launch/setup_venv.sh puts it
    if not beside.is_dir():
        need("timm")
    spec = importlib.util.find_spec("timm")
    (folder,) = (spec.submodule_search_locations or ()) if spec is not None else (str(beside),)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "timm"}
    for name, path in (("timm", folder), ("timm.optim", f"{folder}/optim")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [path]
    try:
        modules = [importlib.import_module(f"timm.optim.{name}") for name in ("lars", "lamb")]
        yield types.SimpleNamespace(Lars=modules[0].Lars, Lamb=modules[1].Lamb)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(scope="module")
def torch_optimizer() -> Any:
    need("torch_optimizer")
    return importlib.import_module("torch_optimizer")


def trajectory(
    make: Callable[..., torch.optim.Optimizer],
    peak: float,
    schedule: str,
    *,
    decays: tuple[float, float] = (WEIGHT_DECAY, WEIGHT_DECAY),
    scale: float = 1.0,
    **options: Any,
) -> Any:
    """Weights after every step; a group for each tensor."""
    params = [torch.nn.Parameter(scale * torch.tensor(weight)) for weight in WEIGHTS]
    groups = [{"params": [param], "weight_decay": decay} for param, decay in zip(params, decays, strict=True)]
    optimizer = make(groups, lr=peak, **options)
    rows = []
    for share, grads in zip(SHARES[schedule], GRADS, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = share * peak
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
        rows.append(torch.cat([param.detach().flatten() for param in params]).numpy())
    return np.stack(rows)


def ours(optimizer_class: type, schedule: str, **options: Any) -> Any:
    peak = PEAKS["lars" if optimizer_class is LARS else "lamb"]
    return trajectory(optimizer_class, peak, schedule, **{**options, **TUNED[optimizer_class]})


def theirs_lars(make: Callable[..., Any], schedule: str, **options: Any) -> Any:
    return trajectory(make, PEAKS["lars"], schedule, **{"momentum": MOMENTUM, **options})


def theirs_lamb(make: Callable[..., Any], schedule: str, **options: Any) -> Any:
    return trajectory(make, PEAKS["lamb"], schedule, **{"betas": BETAS, "eps": EPS, **options})


def distance(one: Any, other: Any, start: Any = START) -> float:
    """Largest difference after any step, relative to the largest distance that a weight of the same tensor has gone."""
    split = WEIGHTS[0].size
    tensors = [slice(None, split), slice(split, None)]
    return max(float(np.abs(one - other)[:, part].max() / np.abs(other - start)[:, part].max()) for part in tensors)


# --- LARS


@both_schedules
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("lars", LARS_PRESETS["simclr"]),
        ("lars-nesterov", {"denominator": "joint", "nesterov": True}),
        ("lars-eps", {"denominator": "joint", "eps": 0.1}),
        ("lars-undecayed", {"denominator": "joint", "decays": (0.0, 0.0)}),
        ("lars-undecayed", {"decays": (0.0, 0.0)}),  # the paper's: without decay both denominators are |g|
        ("lars-paper", LARS_PRESETS["paper"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lars_is_that_of_optax(optax, case, options, schedule):
    assert distance(ours(LARS, schedule, **options), optax(case, schedule)) <= EQUAL


@both_schedules
def test_excluded_tensors_are_those_of_the_masks_of_optax(optax, schedule):
    def make(groups: Any, lr: float, **options: Any) -> LARS:
        groups[1]["adapts"] = False
        return LARS(groups, lr=lr, denominator="joint", **options)

    options = {"decays": (WEIGHT_DECAY, 0.0), **TUNED[LARS]}
    assert distance(trajectory(make, PEAKS["lars"], schedule, **options), optax("lars-excluded", schedule)) <= EQUAL


@both_schedules
def test_the_joint_denominator_of_optax_is_not_the_papers(optax, schedule):
    assert distance(ours(LARS, schedule, **LARS_PRESETS["paper"]), optax("lars", schedule)) > 0.02


@both_schedules
@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({}, LARS_PRESETS["timm"]),
        ({"eps": 0.0, "always_adapt": True}, {"lr_placement": "outside"}),
        ({"nesterov": True}, {**LARS_PRESETS["timm"], "nesterov": True}),
        ({"trust_clip": True}, {**LARS_PRESETS["timm"], "clip": True}),
        ({"trust_clip": True, "trust_coeff": 1.0}, {**LARS_PRESETS["timm"], "clip": True, "trust_coefficient": 1.0}),
    ],
    ids=["defaults", "paper-ratio", "nesterov", "clip", "clip-at-lr"],
)
@pytest.mark.parametrize("decays", [(0.05, 0.05), (0.05, 0.0)], ids=["decayed", "undecayed"])
def test_lars_is_that_of_timm(timm, theirs, options, decays, schedule):
    theirs = {"trust_coeff": TRUST, **theirs}
    tuned = {"momentum": MOMENTUM, "decays": decays, **options, "trust_coefficient": theirs["trust_coeff"]}
    found = trajectory(LARS, PEAKS["lars"], schedule, **tuned)
    assert distance(found, theirs_lars(timm.Lars, schedule, decays=decays, **theirs)) <= EQUAL


@both_schedules
def test_the_eps_of_timm_is_seen_and_small(timm, schedule):
    options = {"trust_coeff": TRUST, "always_adapt": True}
    assert (
        1e-10
        < distance(ours(LARS, schedule, lr_placement="outside"), theirs_lars(timm.Lars, schedule, **options))
        < 1e-7
    )


@both_schedules
def test_lars_is_that_of_torch_optimizer(torch_optimizer, schedule):
    for eps, decays in ((0.0, (0.05, 0.05)), (1e-8, (0.05, 0.0))):
        options = {"lr_placement": "outside", "eps": eps, "adapt_undecayed": False, "decays": decays}
        reference = theirs_lars(
            torch_optimizer.LARS, schedule, trust_coefficient=TRUST, eps=eps, decays=decays, dampening=0.0
        )
        assert distance(ours(LARS, schedule, **options), reference) <= EQUAL


def test_a_rate_outside_the_velocity_is_the_papers_only_while_it_is_constant(torch_optimizer):
    for schedule in SHARES:
        outside = theirs_lars(torch_optimizer.LARS, schedule, trust_coefficient=TRUST, eps=0.0)
        error = distance(ours(LARS, schedule, **LARS_PRESETS["paper"]), outside)
        assert error <= EQUAL if schedule == "constant" else error > 0.1


def test_without_decay_the_lars_of_timm_is_sgd_and_the_papers_is_not(timm):
    options = {"decays": (0.0, 0.0)}
    sgd = theirs_lars(torch.optim.SGD, "warmup", **options)
    assert distance(theirs_lars(timm.Lars, "warmup", **options), sgd) == 0
    assert distance(ours(LARS, "warmup", **LARS_PRESETS["timm"], **options), sgd) <= EQUAL
    assert distance(ours(LARS, "warmup", **LARS_PRESETS["paper"], **options), sgd) > 0.5


# --- LAMB


@both_schedules
def test_lamb_is_that_of_optax(optax, schedule):
    assert distance(ours(LAMB, schedule, **LAMB_PRESETS["paper"]), optax("lamb", schedule)) <= EQUAL
    undecayed = ours(LAMB, schedule, decays=(WEIGHT_DECAY, 0.0), **LAMB_PRESETS["paper"])
    assert distance(undecayed, optax("lamb-undecayed", schedule)) <= EQUAL


@both_schedules
@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({}, LAMB_PRESETS["timm"]),
        ({"always_adapt": True}, LAMB_PRESETS["nvlamb"]),
        ({"always_adapt": True, "max_grad_norm": None}, LAMB_PRESETS["paper"]),
        ({"always_adapt": True, "max_grad_norm": None, "bias_correction": False}, LAMB_PRESETS["paper_v3"]),
        ({"decoupled_decay": True}, {**LAMB_PRESETS["timm"], "decay_placement": "outside"}),
        ({"trust_clip": True}, {**LAMB_PRESETS["timm"], "trust_clip": True}),
        ({"grad_averaging": False}, {**LAMB_PRESETS["timm"], "grad_averaging": False}),
    ],
    ids=["defaults", "nvlamb", "paper", "paper_v3", "decay-outside", "trust-clip", "summed"],
)
@pytest.mark.parametrize("decays", [(0.05, 0.05), (0.05, 0.0)], ids=["decayed", "undecayed"])
def test_lamb_is_that_of_timm(timm, theirs, options, decays, schedule):
    reference = theirs_lamb(timm.Lamb, schedule, decays=decays, **theirs)
    assert distance(ours(LAMB, schedule, decays=decays, **options), reference) <= EQUAL


@both_schedules
def test_the_defaults_of_timm_are_not_the_papers(timm, schedule):
    assert distance(ours(LAMB, schedule, **LAMB_PRESETS["paper"]), theirs_lamb(timm.Lamb, schedule)) > 0.005


@both_schedules
def test_lamb_without_bias_correction_is_that_of_torch_optimizer(torch_optimizer, schedule):
    reference = theirs_lamb(torch_optimizer.Lamb, schedule, clamp_value=1e9)
    assert distance(ours(LAMB, schedule, **LAMB_PRESETS["paper_v3"]), reference) <= EQUAL
    assert distance(ours(LAMB, schedule, **LAMB_PRESETS["paper"]), reference) > 0.05


@both_schedules
def test_the_clamp_of_torch_optimizer_is_an_upper_bound_of_phi(torch_optimizer, schedule):
    scale = 4.0  # the norm of the matrix is above 10 then, and that of the vector below
    reference = theirs_lamb(torch_optimizer.Lamb, schedule, scale=scale)
    options = {"scale": scale, **LAMB_PRESETS["paper_v3"]}
    bounded = ours(LAMB, schedule, **{**options, "norm_bounds": (0.0, 10.0)})
    assert distance(bounded, reference, scale * START) <= EQUAL
    assert distance(ours(LAMB, schedule, **options), reference, scale * START) > 0.05


def test_to_correct_the_bias_behind_the_ratio_is_another_algorithm(torch_optimizer):
    reference = theirs_lamb(torch_optimizer.Lamb, "constant", clamp_value=1e9, debias=True)
    for preset in LAMB_PRESETS.values():
        assert distance(ours(LAMB, "constant", **preset), reference) > 0.05

"""Every variant of LARS and LAMB, on both paths, against the float64 reference, step by step at a changing rate."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import asdict
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
from tests.sums import assert_same_sums

# Every option alone, then some together; the others keep the paper's value.
LARS_OPTIONS: dict[str, dict[str, Any]] = {
    "joint": {"denominator": "joint"},
    "outside": {"lr_placement": "outside"},
    "nesterov": {"nesterov": True},
    "clip": {"clip": True, "trust_coefficient": 0.003},
    "eps": {"eps": 0.1},
    "undecayed": {"adapt_undecayed": False},
    "outside-nesterov": {"lr_placement": "outside", "nesterov": True},
    "outside-clip-eps": {"lr_placement": "outside", "clip": True, "eps": 1e-8, "trust_coefficient": 0.003},
    "joint-nesterov-clip": {
        "denominator": "joint",
        "nesterov": True,
        "clip": True,
        "trust_coefficient": 0.003,
    },
}
LAMB_OPTIONS: dict[str, dict[str, Any]] = {
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
}
VARIANTS = {
    **{("LARS", f"preset-{name}"): options for name, options in LARS_PRESETS.items()},
    **{("LARS", name): {"trust_coefficient": 0.02, **options} for name, options in LARS_OPTIONS.items()},
    **{("LAMB", f"preset-{name}"): options for name, options in LAMB_PRESETS.items()},
    **{("LAMB", name): options for name, options in LAMB_OPTIONS.items()},
}
CLASSES: dict[str, Any] = {"LARS": LARS, "LAMB": LAMB}
TUNED: dict[str, dict[str, Any]] = {"LARS": {"momentum": 0.9}, "LAMB": {"betas": (0.9, 0.99), "eps": 1e-6}}
STATE = {
    "LARS": {"momentum_buffer": "velocity"},
    "LAMB": {"exp_avg": "m", "exp_avg_sq": "v"},
}
COURSES = [course for seed in range(len(FLAGS)) for course in courses(seed)]
STARTS = [0, *np.cumsum([course.weight.size for course in COURSES])[:-1].tolist()]

SAVED_AT = WARMUP_STEPS // 5

PRESETS_ALONE = [key for key in VARIANTS if key[1].startswith("preset-")]

every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=map("-".join, VARIANTS))
every_preset = pytest.mark.parametrize(("name", "variant"), PRESETS_ALONE, ids=map("-".join, PRESETS_ALONE))
# The arithmetic of every option in float64. In float32 what is new is rounding, which the presets show.
COURSES_TO_TAKE = [
    *((*key, torch.float64, 1e-12) for key in VARIANTS),
    *((*key, torch.float32, 1e-6) for key in PRESETS_ALONE),
]
every_course = pytest.mark.parametrize(
    ("name", "variant", "dtype", "tolerance"),
    COURSES_TO_TAKE,
    ids=[f"{name}-{variant}-{torch.finfo(dtype).bits}" for name, variant, dtype, _ in COURSES_TO_TAKE],
)
both_classes = pytest.mark.parametrize("name", CLASSES)
# None: fused for the forms that have it, foreach for the others.
# foreach gives the bits of the loop, see test_both_paths_give_the_same_bits.
one_of_equal_paths = pytest.mark.parametrize("foreach", [False, None], ids=["loop", "chosen"])
every_path = pytest.mark.parametrize("foreach", [False, True, None], ids=["loop", "foreach", "chosen"])


def steps_of(variant: str, dtype: torch.dtype = torch.float64) -> range:
    """Presets take all 200 steps in float64. What an option or rounding adds shows in each step: fewer are enough."""
    is_whole = variant.startswith("preset-") and dtype == torch.float64
    return range(NUM_STEPS if is_whole else min(NUM_STEPS, WARMUP_STEPS + 10))


def peak_of(name: str, variant: str) -> float:
    """Tensors that adapt move by about as much per step, whatever the trust coefficient; a summed moment is longer."""
    options = VARIANTS[name, variant]
    if name == "LARS":  # with clip the rate of a tensor is not multiplied by the global one
        return 0.15 if options.get("clip") else 0.003 / options["trust_coefficient"]
    return 0.015 if options.get("grad_averaging", True) else 0.0015


def flags_of(number: int) -> dict[str, Any]:
    weight_decay, adapts = FLAGS[number // (len(COURSES) // len(FLAGS))]
    return {"weight_decay": weight_decay, "adapts": adapts}


def make_references(name: str, variant: str) -> list[Any]:
    options = {**TUNED[name], **VARIANTS[name, variant]}
    options.pop("max_grad_norm", None)
    make: Callable[..., Any] = ReferenceLARS if name == "LARS" else ReferenceLAMB
    return [make(course.weight, **options, **flags_of(number)) for number, course in enumerate(COURSES)]


def step_references(name: str, variant: str, references: list[Any], step: int) -> None:
    grads = prenormalised([course.grads[step] for course in COURSES], VARIANTS[name, variant].get("max_grad_norm"))
    for reference, grad in zip(references, grads, strict=True):
        reference.step(grad, warmup_then_cosine(step, peak_of(name, variant)))


@functools.cache
def truth(name: str, variant: str) -> Trajectory:
    references = make_references(name, variant)
    kinds = {"weight": "weight", **STATE[name]}
    rows: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for step in steps_of(variant):
        step_references(name, variant, references, step)
        for kind, attribute in kinds.items():
            rows[kind].append(np.concatenate([getattr(one, attribute).ravel() for one in references]))
    return Trajectory({kind: np.stack(values) for kind, values in rows.items()}, STARTS)


def make(
    name: str, variant: str, dtype: torch.dtype, foreach: bool | None
) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """One optimizer with a group for every combination of flags."""
    params = [torch.nn.Parameter(torch.tensor(course.weight, dtype=dtype)) for course in COURSES]
    size = len(COURSES) // len(FLAGS)
    groups = [{"params": params[at : at + size], **flags_of(at)} for at in range(0, len(COURSES), size)]
    return params, CLASSES[name](groups, lr=0.0, foreach=foreach, **TUNED[name], **VARIANTS[name, variant])


def set_rate_and_grads(optimizer: torch.optim.Optimizer, params: list[Any], lr: float, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    for param, course in zip(params, COURSES, strict=True):
        param.grad = torch.tensor(course.grads[step], dtype=param.dtype)


def flat(tensors: list[Tensor]) -> Any:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def run(name: str, variant: str, dtype: torch.dtype, foreach: bool | None) -> Trajectory:
    params, optimizer = make(name, variant, dtype, foreach)
    rows: dict[str, list[Any]] = {kind: [] for kind in ("weight", *STATE[name])}
    for step in steps_of(variant, dtype):
        set_rate_and_grads(optimizer, params, warmup_then_cosine(step, peak_of(name, variant)), step)
        optimizer.step()
        rows["weight"].append(flat(params))
        for kind in STATE[name]:
            rows[kind].append(flat([optimizer.state[param][kind] for param in params]))
    return Trajectory({kind: np.stack(values) for kind, values in rows.items()}, STARTS)


# A step rounds about ten times, by at most 2^-53 or 2^-24: all in one direction, 200 * 10 * 2^-53 = 2e-13; in float32,
# as the random walk that it is, sqrt(200 * 10) / sqrt(12) * 2^-23 = 1.5e-6 if all values were as large as the largest.
# Half of it remains. 0.99 itself is off by 1e-8 in float32, which the second moment remembers for 100 steps.
TOLERANCES = {torch.float64: {}, torch.float32: {"exp_avg_sq": 2e-6}}


@every_course
@one_of_equal_paths
def test_every_step_equals_the_reference_in_weights_and_state(name, variant, dtype, tolerance, foreach):
    errors = run(name, variant, dtype, foreach).worst_errors(truth(name, variant))
    assert all(error <= TOLERANCES[dtype].get(kind, tolerance) for kind, error in errors.items()), errors


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_paths_give_the_same_bits_and_leave_the_gradients_as_they_are(name, variant, dtype):
    results = []
    for foreach in (False, True):
        params, optimizer = make(name, variant, dtype, foreach)
        for step in (1, 10, 30):
            set_rate_and_grads(optimizer, params, warmup_then_cosine(step, peak_of(name, variant)), step)
            grads = [param.grad for param in params]
            before = [grad.clone() for grad in grads]
            optimizer.step()
            assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
            assert all(torch.equal(grad, old) for grad, old in zip(grads, before, strict=True))
        results.append([*params, *(value for param in params for value in optimizer.state[param].values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@every_variant
@every_path
def test_no_variant_waits_for_the_device(name, variant, foreach):
    """Tensors on the meta device have no values: reading one, or branching on one, raises."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 2), (4,), ())]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
    optimizer = CLASSES[name](groups, lr=0.1, foreach=foreach, **VARIANTS[name, variant])
    for _ in range(2):
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()


def rounded(array: Any) -> Any:
    return torch.tensor(array, dtype=torch.bfloat16).double().numpy()


@every_preset
@one_of_equal_paths
def test_bfloat16_weights_are_the_reference_rounded_once_a_step(name, variant, foreach):
    """Both round the same weights every step, so the state has to be right to float32 and the weights to a rounding."""
    params, optimizer = make(name, variant, torch.bfloat16, foreach)
    references = make_references(name, variant)
    for reference, param in zip(references, params, strict=True):
        reference.weight = param.detach().double().numpy()
    narrow = [Course(course.weight, [rounded(grad) for grad in course.grads]) for course in COURSES]
    scales = dict.fromkeys(STATE[name], 0.0)
    for step in steps_of(variant, torch.bfloat16):
        lr = warmup_then_cosine(step, peak_of(name, variant))
        set_rate_and_grads(optimizer, params, lr, step)
        optimizer.step()
        grads = prenormalised([one.grads[step] for one in narrow], VARIANTS[name, variant].get("max_grad_norm"))
        for reference, param, grad in zip(references, params, grads, strict=True):
            reference.step(grad, lr)
            weight = param.detach().double().numpy()
            # Half a unit in the last place of 8 bits; float32 may see a tie where float64 sees none.
            assert np.all(np.abs(weight - reference.weight) <= 2.0**-8 * np.abs(reference.weight) * (1 + 1e-4) + 1e-30)
            reference.weight = weight
        for kind, attribute in STATE[name].items():
            true = np.concatenate([getattr(one, attribute).ravel() for one in references])
            state = [optimizer.state[param][kind] for param in params]
            assert all(value.dtype == torch.float32 for value in state)
            scales[kind] = max(scales[kind], float(np.abs(true).max()))
            assert np.abs(flat(state) - true).max() <= TOLERANCES[torch.float32].get(kind, 1e-6) * scales[kind]


@every_preset
@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_in_the_warmup_a_run_goes_on_bit_for_bit(name, variant, foreach, dtype):
    def steps(params: list[Any], optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for step in numbers:
            set_rate_and_grads(optimizer, params, warmup_then_cosine(step, peak_of(name, variant)), step)
            optimizer.step()

    params, optimizer = make(name, variant, dtype, foreach)
    steps(params, optimizer, range(SAVED_AT))
    file = io.BytesIO()
    torch.save({"weights": params, "optimizer": optimizer.state_dict()}, file)
    steps(params, optimizer, range(SAVED_AT, 2 * SAVED_AT))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed_params, resumed = make(name, variant, dtype, foreach)
    with torch.no_grad():
        for param, weight in zip(resumed_params, saved["weights"], strict=True):
            param.copy_(weight)
    resumed.load_state_dict(saved["optimizer"])
    steps(resumed_params, resumed, range(SAVED_AT, 2 * SAVED_AT))
    for one, other in zip(params, resumed_params, strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(value, resumed.state[other][key]) for key, value in optimizer.state[one].items())


@every_preset
@every_path
def test_a_closure_makes_the_gradients_that_the_step_uses(name, variant, foreach):
    params, optimizer = make(name, variant, torch.float64, foreach)
    twins, twin = make(name, variant, torch.float64, foreach)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = sum(((param + 30.0) ** 2).sum() for param in params)
        loss.backward()
        return loss

    for _ in range(5):
        for group in (*twin.param_groups, *optimizer.param_groups):
            group["lr"] = 0.01
        for param in twins:
            param.grad = 2 * (param.detach() + 30.0)
        twin.step()
        expected = sum(((param.detach() + 30.0) ** 2).sum() for param in params)
        assert optimizer.step(closure) == expected
    for one, other in zip(params, twins, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


FORMS = {"LARS": LarsForm, "LAMB": LambForm}
PRESETS = {"LARS": LARS_PRESETS, "LAMB": LAMB_PRESETS}


@both_classes
def test_the_defaults_are_the_papers(name):
    form, paper = FORMS[name], PRESETS[name]["paper"]
    defaults = CLASSES[name]([torch.nn.Parameter(torch.ones(1))], lr=0.1).defaults
    assert {key: defaults[key] for key in paper} == paper
    assert asdict(form.of(defaults)) == asdict(form())


@every_preset
def test_a_preset_names_every_option_and_is_the_paper_or_not(name, variant):
    form = FORMS[name]
    options = VARIANTS[name, variant]
    assert set(options) - {"trust_coefficient"} == set(asdict(form()))
    is_the_formula = {"paper", "mlperf", "textbook"}
    assert (form.of(options) == form()) == (variant.removeprefix("preset-") in is_the_formula)


@both_classes
def test_a_state_from_before_the_options_existed_is_loaded_as_the_papers(name):
    param, twin = (torch.nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    old, new = CLASSES[name]([param], lr=0.1), CLASSES[name]([twin], lr=0.1, adapt_undecayed=False)
    param.grad = twin.grad = torch.tensor([1.0, 2.0])
    old.step()
    state = old.state_dict()
    for option in asdict(FORMS[name]()):
        del state["param_groups"][0][option]
    new.load_state_dict(state)
    assert FORMS[name].of(new.param_groups[0]) == FORMS[name]()
    new.step()


def test_textbook_moves_what_adapts_as_the_paper_does_and_what_is_excluded_a_thousand_times_less():
    changes = {}
    for preset, lr in (("paper", 1.0), ("textbook", 0.001)):
        adapted, excluded = (torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64)) for _ in range(2))
        groups = [{"params": [adapted]}, {"params": [excluded], "adapts": False}]
        optimizer = LARS(groups, lr=lr, weight_decay=0.1, **LARS_PRESETS[preset])
        adapted.grad = excluded.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
        optimizer.step()
        changes[preset] = [param.detach() - torch.tensor([3.0, 4.0]) for param in (adapted, excluded)]
    # Differences of weights of 4, which round by 4e-16 each.
    assert_same_sums(changes["textbook"][0], changes["paper"][0], terms=4.0, digits=1e-15)
    assert_same_sums(1000 * changes["textbook"][1], changes["paper"][1], terms=4000.0, digits=1e-15)


@every_path
def test_the_global_norm_is_that_of_all_groups_and_dtypes(foreach):
    """3, 4 and 12 in three dtypes and two groups: 13. So all are divided by 13 / 6.5 = 2 before the moments."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    params = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in dtypes]
    without = torch.nn.Parameter(torch.ones(2))
    groups = [{"params": params[:2]}, {"params": [params[2], without]}]
    optimizer = LAMB(groups, lr=0.1, max_grad_norm=6.5, foreach=foreach)
    for param, value in zip(params, (3.0, 4.0, 12.0), strict=True):
        param.grad = torch.tensor([value, 0.0], dtype=param.dtype)
    optimizer.step()
    for param, value in zip(params, (3.0, 4.0, 12.0), strict=True):
        tolerance = 1e-6 if param.dtype != torch.float64 else 1e-14  # float64 is divided by the norm in float64
        assert optimizer.state[param]["exp_avg"].tolist() == pytest.approx([0.1 * value / 2, 0], rel=tolerance)
    optimizer.param_groups[1]["max_grad_norm"] = None
    optimizer.step()
    assert optimizer.state[params[2]]["exp_avg"][0].item() == pytest.approx(0.9 * 0.6 + 1.2, rel=1e-6)
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all


@every_path
def test_gradients_shorter_than_the_largest_norm_are_not_touched(foreach):
    results = []
    for max_grad_norm in (None, 100.0):
        param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        param.grad = torch.tensor([1.0, 2.0])
        LAMB([param], lr=0.1, max_grad_norm=max_grad_norm, foreach=foreach).step()
        results.append(param)
    assert torch.equal(*results)

"""Every form of LARS and LAMB on every path against the float64 reference, at rates that change; and the presets."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.optim import LAMB, LARS, LARS_PRESETS
from largebatch.optim.forms import form_of
from largebatch.optim.kernels.compiler import has_compiler
from tests.reference.lars_lamb import WARMUP_STEPS
from tests.sums import assert_same_sums
from tests.unit.optim.forms import (
    CLASSES,
    EVERY_COURSE,
    FORMS,
    PATHS,
    PRESETS,
    PRESETS_ALONE,
    SECOND_MOMENT_IN_FLOAT32,
    STATE,
    SWITCHES,
    TOLERANCES,
    assert_true_at_every_step,
    course,
    every_form,
    every_preset,
    everything,
    has_path,
    make,
    make_references,
    step_references,
    take_step,
)
from tests.unit.optim.forms import flat as joined

both_classes = pytest.mark.parametrize("name", CLASSES)
loop_and_foreach = pytest.mark.parametrize("foreach", [False, True])
# The arithmetic of every option in float64. In float32 what is new is rounding, which the presets show. foreach gives
# the bits of the loop.
CELLS = [
    (*key, path, dtype)
    for path in ("loop", "fused", "compiled")
    for dtype, forms in ((torch.float64, list(FORMS)), (torch.float32, PRESETS_ALONE))
    for key in forms
    if has_path(*key, path)
]


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize(
    ("name", "form", "path", "dtype"), CELLS, ids=["-".join((*cell[:3], str(cell[3])[-2:])) for cell in CELLS]
)
def test_every_step_equals_the_reference_in_weights_and_state(name, form, path, dtype):
    if path == "compiled" and not has_compiler():
        if os.environ.get("LARGEBATCH_TEST_ORACLES") == "required":
            pytest.fail("there is no C compiler: cc, gcc or clang")
        pytest.skip("there is no C compiler: cc, gcc or clang")
    demanded = {"fused": True} if path == "fused" else PATHS[path]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2 if path == "compiled" else num_threads)
    try:
        assert_true_at_every_step(name, form, dtype, demanded)
    finally:
        torch.set_num_threads(num_threads)


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_foreach_gives_the_bits_of_the_loop(name, form, dtype):
    results = []
    for path in (PATHS["loop"], PATHS["foreach"]):
        params, optimizer = make(name, form, dtype, path)
        for step in (1, 10, 30):
            take_step(name, form, optimizer, params, step, EVERY_COURSE)
        results.append(everything(optimizer, params))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@every_form
@loop_and_foreach
def test_no_form_waits_for_the_device(name, form, foreach):
    """Tensors on the meta device have no values: reading one, or branching on one, raises."""
    params = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((3, 2), (4,), ())]
    groups = [
        {"params": [param], "weight_decay": decay, "adapts": adapts}
        for param, decay, adapts in zip(params, (0.1, 0.0, 0.1), (True, True, False), strict=True)
    ]
    optimizer = CLASSES[name](groups, lr=0.1, foreach=foreach, **FORMS[name, form])
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        params[0].sum().item()


@every_preset
def test_bfloat16_weights_are_the_reference_rounded_once_a_step(name, form):
    """Both round the same weights every step, so the state has to be right to float32 and the weights to a rounding."""
    params, optimizer = make(name, form, torch.bfloat16, PATHS["loop"])
    references = make_references(name, form)
    for reference, param in zip(references, params, strict=True):
        reference.weight = param.detach().double().numpy()
    scales = dict.fromkeys(STATE[name], 0.0)
    for step in range(WARMUP_STEPS // 2):
        take_step(name, form, optimizer, params, step, EVERY_COURSE)
        narrow = [torch.tensor(course(*one).grads[step], dtype=torch.bfloat16).double().numpy() for one in EVERY_COURSE]
        step_references(name, form, references, narrow, step)
        for reference, param in zip(references, params, strict=True):
            weight = param.detach().double().numpy()
            # Half a unit in the last place of 8 bits; float32 may see a tie where float64 sees none.
            assert np.all(np.abs(weight - reference.weight) <= 2.0**-8 * np.abs(reference.weight) * (1 + 1e-4) + 1e-30)
            reference.weight = weight
        for kind, attribute in STATE[name].items():
            true = np.concatenate([getattr(one, attribute).ravel() for one in references])
            state = [optimizer.state[param][kind] for param in params]
            assert all(value.dtype == torch.float32 for value in state)
            scales[kind] = max(scales[kind], float(np.abs(true).max()))
            tolerance = SECOND_MOMENT_IN_FLOAT32 if kind == "exp_avg_sq" else TOLERANCES[torch.float32]
            assert np.abs(joined(state) - true).max() <= tolerance * scales[kind]


# --- presets and options


@both_classes
def test_the_defaults_are_the_papers(name):
    paper = PRESETS[name]["paper"]
    defaults = CLASSES[name]([torch.nn.Parameter(torch.ones(1))], lr=0.1).defaults
    assert {key: defaults[key] for key in paper} == paper
    assert form_of(SWITCHES[name], defaults) == SWITCHES[name]()


def test_a_preset_names_every_option_and_some_are_the_papers_formula():
    for name, presets in PRESETS.items():
        for options in presets.values():
            assert set(options) - {"trust_coefficient"} == set(vars(SWITCHES[name]()))
        formula = {one for one, options in presets.items() if form_of(SWITCHES[name], options) == SWITCHES[name]()}
        assert formula == ({"paper", "mlperf", "textbook"} if name == "LARS" else {"paper"})
    assert LARS_PRESETS["mlperf"] == LARS_PRESETS["paper"]


@both_classes
def test_a_state_from_before_the_options_existed_is_loaded_as_the_papers(name):
    param, twin = (torch.nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    old, new = CLASSES[name]([param], lr=0.1), CLASSES[name]([twin], lr=0.1, adapt_undecayed=False)
    param.grad = twin.grad = torch.tensor([1.0, 2.0])
    old.step()
    state = old.state_dict()
    for option in (*vars(SWITCHES[name]()), "fused", "compile"):
        del state["param_groups"][0][option]
    new.load_state_dict(state)
    assert form_of(SWITCHES[name], new.param_groups[0]) == SWITCHES[name]()
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


@loop_and_foreach
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


@loop_and_foreach
def test_gradients_shorter_than_the_largest_norm_are_not_touched(foreach):
    results: list[Any] = []
    for max_grad_norm in (None, 100.0):
        param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        param.grad = torch.tensor([1.0, 2.0])
        LAMB([param], lr=0.1, max_grad_norm=max_grad_norm, foreach=foreach).step()
        results.append(param)
    assert torch.equal(*results)

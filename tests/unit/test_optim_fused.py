"""The fused paths of LARS and LAMB: as right as the others, at every boundary of a block, in little memory."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from largebatch.optim import LAMB, LARS
from largebatch.optim.kernels.flat import norm
from largebatch.optim.trust_ratio import ratio_of_numbers, trust_ratio
from tests.unit.test_optim_variants import CLASSES, COURSES_TO_TAKE, FORMS, TOLERANCES, VARIANTS, run, truth

LAMB_MODULE, LARS_MODULE, FLAT, FUSED_LAMB = (
    importlib.import_module(f"largebatch.optim.{name}")
    for name in ("lamb_arithmetic", "lars_arithmetic", "kernels.flat", "kernels.fused_lamb")
)
both = pytest.mark.parametrize("optimizer_class", [LARS, LAMB])
SHAPES = [(40, 30), (5000,), (3, 7, 11), (300, 9), (6,), (), (0,)]


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of 7 elements, rows of 3, and scratch for two blocks and a bit: every tensor crosses boundaries."""
    monkeypatch.setattr(FLAT, "SMALL_NUMEL", 4)
    monkeypatch.setattr(FLAT, "_ROW_NUMEL", 3)
    monkeypatch.setattr(FUSED_LAMB, "BLOCK_NUMEL", 7)
    monkeypatch.setattr(FUSED_LAMB, "SCRATCH_SHARE", 0.0)
    monkeypatch.setattr(FUSED_LAMB, "LEAST_SCRATCH_NUMEL", 16)


@pytest.fixture
def paths_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that make steps, one entry per call."""
    taken: list[str] = []

    def spied(module, name: str):
        original = getattr(module, name)

        def spy(*args, **kwargs):
            taken.append(name.strip("_").rpartition("_")[0])
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)

    for module, algorithm in ((LAMB_MODULE, "lamb"), (LARS_MODULE, "lars")):
        for name in (f"fused_{algorithm}", f"_multi_tensor_{algorithm}", f"_single_tensor_{algorithm}"):
            spied(module, name)
    return taken


def make_params(dtype: torch.dtype = torch.float32, shapes=SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_grads(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator))  # in its layout


def stepped(optimizer_class, params, num_steps: int = 4, **options):
    optimizer = optimizer_class(params, lr=0.03, weight_decay=0.05, **options)
    for seed in range(num_steps):
        set_grads(params, seed)
        optimizer.step()
    return optimizer


def assert_same_course(optimizer_class, params, twins, tolerance: float, **options) -> None:
    """The parameters on the path of `options` and their twins in the loop, weights and state."""
    fast, loop = stepped(optimizer_class, params, **options), stepped(optimizer_class, twins, foreach=False)
    for param, twin in zip(params, twins, strict=True):
        pairs = [(param, twin), *((fast.state[param][name], loop.state[twin][name]) for name in loop.state[twin])]
        for value, expected in pairs:
            scale = float(expected.detach().abs().max()) if expected.numel() else 1.0
            torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * scale)


FUSED_VARIANTS = [
    (name, variant)
    for name, variant in VARIANTS
    if FORMS[name].of(CLASSES[name](make_params(), lr=0.1, **VARIANTS[name, variant]).defaults).is_fused
]


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize(
    ("name", "variant", "dtype", "tolerance"), [course for course in COURSES_TO_TAKE if course[:2] in FUSED_VARIANTS]
)
def test_every_step_in_tiny_blocks_equals_the_reference(name, variant, dtype, tolerance, paths_taken):
    errors = run(name, variant, dtype, None).worst_errors(truth(name, variant))
    assert all(error <= TOLERANCES[dtype].get(kind, tolerance) for kind, error in errors.items()), errors
    assert set(paths_taken) == {"fused"}


def test_forms_that_the_fused_path_does_not_have_are_refused_or_take_another(paths_taken):
    for optimizer_class, options in ((LARS, {"nesterov": True}), (LAMB, {"max_grad_norm": 1.0})):
        with pytest.raises(ValueError, match=r"fused=True with .*the fused path does not have this form"):
            optimizer_class(make_params(), lr=0.1, fused=True, **options)
        stepped(optimizer_class, make_params(), num_steps=1, **options)
    assert set(paths_taken) == {"multi_tensor"}


# Both round each operation, in another order: a few 2^-53 or 2^-24 per step.
@both
@pytest.mark.parametrize("scratch_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_scratch_decides_the_speed_and_not_the_result(
    optimizer_class, scratch_share, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(FUSED_LAMB, "SCRATCH_SHARE", scratch_share)
    monkeypatch.setattr(FUSED_LAMB, "LEAST_SCRATCH_NUMEL", 1000)
    monkeypatch.setattr(FUSED_LAMB, "BLOCK_NUMEL", 700)
    monkeypatch.setattr(FLAT, "SMALL_NUMEL", 512)
    assert_same_course(optimizer_class, make_params(dtype), make_params(dtype), tolerance, fused=True)


def test_making_an_update_again_changes_no_bit_of_the_moments(monkeypatch):
    monkeypatch.setattr(FLAT, "SMALL_NUMEL", 4)
    monkeypatch.setattr(FUSED_LAMB, "SCRATCH_SHARE", 0.0)
    moments = []
    for scratch_numel in (5000, 100):  # all updates are kept, nearly none
        monkeypatch.setattr(FUSED_LAMB, "LEAST_SCRATCH_NUMEL", scratch_numel)
        params = make_params()
        optimizer = stepped(LAMB, params, num_steps=1)
        moments.append([optimizer.state[param][name] for param in params for name in ("exp_avg", "exp_avg_sq")])
    assert all(torch.equal(one, other) for one, other in zip(*moments, strict=True))


@both
@pytest.mark.parametrize("adapts", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_path_leaves_the_gradients_bit_identical(optimizer_class, adapts, dtype, tiny_blocks):
    params = make_params(dtype)
    optimizer = optimizer_class(params, lr=0.03, adapts=adapts, fused=True)
    for seed in range(3):
        set_grads(params, seed)
        gradients, before = [param.grad for param in params], [param.grad.clone() for param in params]
        optimizer.step()
        for param, gradient, copy in zip(params, gradients, before, strict=True):
            assert param.grad is gradient
            assert torch.equal(gradient, copy)


@both
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "with a size of 1"])
def test_any_dense_layout_takes_the_fused_path(optimizer_class, layout, paths_taken):
    def laid_out() -> torch.nn.Parameter:
        values = torch.randn((4, 3, 5, 5) if layout != "with a size of 1" else (4, 1, 5, 1), generator=generator)
        if layout == "transposed":
            return torch.nn.Parameter(values.permute(3, 0, 2, 1))
        return torch.nn.Parameter(values.to(memory_format=torch.channels_last))

    generator = torch.Generator().manual_seed(0)
    param = laid_out()
    twin = torch.nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    assert_same_course(optimizer_class, [param], [twin], 1e-6, fused=True)
    assert paths_taken == 4 * ["fused"] + 4 * ["single_tensor"]


@both
def test_a_gradient_in_another_order_than_its_parameter_takes_the_other_path(optimizer_class, paths_taken):
    def run(foreach: bool | None) -> torch.nn.Parameter:
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter(torch.randn(6, 8, generator=generator))
        plain = torch.nn.Parameter(torch.randn(5, generator=generator))
        param.grad, plain.grad = torch.randn(8, 6, generator=generator).t(), torch.ones(5)
        optimizer_class([param, plain], lr=0.03, foreach=foreach).step()
        return param

    assert torch.equal(run(None), run(True))
    assert paths_taken == ["fused", "multi_tensor", "multi_tensor"]


@both
def test_the_foreach_path_goes_by_bunches_of_limited_size(optimizer_class, paths_taken, monkeypatch):
    whole, in_bunches = make_params(), make_params()
    stepped(optimizer_class, whole, foreach=True)
    monkeypatch.setattr(importlib.import_module("largebatch.optim.state"), "MAX_BUNCH_NUMEL", 3000)
    stepped(optimizer_class, in_bunches, foreach=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, in_bunches, strict=True))
    assert paths_taken == (4 + 4 * 3) * ["multi_tensor"]  # 1200; 5000; 231 + 2700 + 6 + 1 + 0


@both
def test_a_parameter_that_became_wider_than_its_state_takes_the_other_path(optimizer_class, paths_taken):
    params = make_params(torch.float32, [(3,)])
    optimizer = stepped(optimizer_class, params, num_steps=1)
    params[0].data = params[0].data.double()  # as model.double() does
    set_grads(params, 1)
    optimizer.step()
    assert paths_taken == ["fused", "multi_tensor"]


class Labelled(torch.Tensor):
    """A subclass, as DTensor is one."""


@both
@pytest.mark.parametrize(
    ("options", "value", "path"),
    [
        ({}, torch.ones(3), "fused"),
        ({"fused": True}, torch.ones(3), "fused"),
        ({"fused": False}, torch.ones(3), "multi_tensor"),
        ({"foreach": True}, torch.ones(3), "multi_tensor"),
        ({"foreach": False}, torch.ones(3), "single_tensor"),
        ({"foreach": False, "fused": True}, torch.ones(3), "fused"),
        ({}, torch.ones(3, dtype=torch.bfloat16), "multi_tensor"),
        ({}, torch.ones(3, device="meta"), "multi_tensor"),
        ({}, torch.ones(3).as_subclass(Labelled), "single_tensor"),
    ],
)
def test_the_path_follows_the_options_and_the_tensor(optimizer_class, options, value, path, paths_taken):
    param = torch.nn.Parameter(value)
    param.grad = torch.ones_like(param)
    optimizer_class([param], lr=0.1, **options).step()
    assert paths_taken == [path]


@both
@pytest.mark.parametrize(
    ("value", "grad", "fact"),
    [
        (torch.ones(3, dtype=torch.float16), None, r"shape \[3\], Parameter of torch.float16 on cpu"),
        (torch.ones(3, device="meta"), None, "on meta"),
        (torch.ones(3).as_subclass(Labelled), None, "Labelled"),
        (torch.ones(2, 3), torch.ones(3, 2).t(), r"its gradient of torch.float32 with strides \(1, 2\)"),
    ],
)
def test_fused_true_is_refused_where_it_cannot_be_before_anything_moves(optimizer_class, value, grad, fact):
    first, param = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(value)
    first.grad, param.grad = torch.ones(2), torch.ones_like(param) if grad is None else grad
    with pytest.raises(ValueError, match=rf"fused=True.*{fact}.*Set fused=None"):
        optimizer_class([first, param], lr=0.1, fused=True).step()
    assert first.tolist() == [1.0, 1.0]


@both
def test_two_paths_at_once_are_refused(optimizer_class):
    with pytest.raises(ValueError, match=r"^foreach=True and fused=True"):
        optimizer_class(make_params(), lr=0.1, foreach=True, fused=True)
    with pytest.raises(ValueError, match=r"^foreach=True and fused=True"):
        optimizer_class([{"params": make_params(), "fused": True}], lr=0.1, foreach=True)
    optimizer = optimizer_class(make_params(), lr=0.1, foreach=True)
    optimizer.param_groups[0]["fused"] = True
    optimizer.param_groups[0]["params"][0].grad = torch.ones(SHAPES[0])
    with pytest.raises(ValueError, match=r"^foreach=True and fused=True"):
        optimizer.step()


@both
def test_state_that_was_saved_without_the_option_steps_on(optimizer_class):
    params = make_params()
    saved = stepped(optimizer_class, params).state_dict()
    for group in saved["param_groups"]:
        del group["fused"]
    optimizer = optimizer_class(params, lr=0.03)
    optimizer.load_state_dict(saved)
    optimizer.step()


@pytest.mark.parametrize("lr", [1e-12, 1e-8, 1e-3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_rate_keeps_all_its_digits(lr, dtype):
    """The kernel takes 1 - rate, which has lost all digits of a rate of 1e-17 and half of those of 1e-8."""
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
    param.grad = torch.tensor([0.0, 1.0], dtype=dtype)
    optimizer = LARS([param], lr=lr, weight_decay=0.0, adapts=False, fused=True)
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].tolist() == [0.0, torch.tensor(lr, dtype=dtype).item()]


@pytest.mark.parametrize("lr", [1e-9, 0.5])
def test_without_momentum_the_buffer_is_the_last_step(lr):
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([param], lr=lr, momentum=0.0, weight_decay=0.0, adapts=False, fused=True)
    for grad in ([1.0, 2.0], [4.0, -2.0]):
        param.grad = torch.tensor(grad)
        optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.tensor(lr) * torch.tensor([4.0, -2.0]))


@pytest.mark.parametrize("adapts", [True, False])
def test_every_parameter_has_its_own_step_number(adapts, tiny_blocks):
    def late_joiner(**options) -> list[torch.nn.Parameter]:
        params = make_params(torch.float64)
        optimizer = LAMB(params, lr=0.1, adapts=adapts, **options)
        for step in range(3):
            set_grads(params, step)
            for param in params[step + 1 :: 2]:
                param.grad = None
            optimizer.step()
        return params

    for one, other in zip(late_joiner(fused=True), late_joiner(foreach=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("numel", [1, 1000, 1024, 1025, 2**22, 2**22 + 5])
@pytest.mark.parametrize("constant", [False, True])
def test_norms_of_flat_float32_tensors_are_right(numel, constant):
    """Equal entries are the worst case: every addition to the sum rounds the same way."""
    flat = torch.full((numel,), 0.3) if constant else torch.randn(numel, generator=torch.Generator().manual_seed(0))
    assert norm(flat) == pytest.approx(float(flat.double().square().sum().sqrt()), rel=1e-6)


@pytest.mark.parametrize("norms", [(5.0, 2.0), (0.0, 2.0), (5.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (1e-30, 1e30)])
def test_the_ratio_of_numbers_is_the_ratio_of_tensors(norms):
    for options in (
        {"coefficient": 0.02, "weight_decay": 0.1},
        {"coefficient": 0.02, "weight_decay": 0.1, "eps": 0.5, "at_most": 0.04},
        {"norm_bounds": (0.25, 3.0)},
        {"norm_bounds": (0.0, 3.0), "at_most": 1.0},
    ):
        tensors = (torch.tensor(value, dtype=torch.float64) for value in norms)
        expected = trust_ratio(*tensors, **options).item()
        assert ratio_of_numbers(*norms, **options) == pytest.approx(expected, rel=1e-15, nan_ok=True)

"""What LARS and LAMB have in common: precision, state, gradients that stay, norms."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.optim import LAMB, LAMB_PRESETS, LARS, LARS_PRESETS, l2_norm, trust_ratio
from largebatch.optim.trust_ratio import l2_norms

OPTIMIZERS = [LARS, LAMB]
both = pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
paths = pytest.mark.parametrize("foreach", [False, True])
SHAPES = [(7, 5), (4, 3, 2, 2), (6,), (), (0,)]


def make_params(dtype: torch.dtype, device: str = "cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(device=device, dtype=dtype)) for s in SHAPES]


def set_grads(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param)


def make_optimizer(optimizer_class, params, **options):
    """A group per flag combination, over the parameters in turn, and numbers that are not the defaults."""
    flags = [(0.05, True), (0.05, False), (0.0, True), (0.0, False)]
    groups = [
        {"params": params[number::4], "weight_decay": weight_decay, "adapts": adapts}
        for number, (weight_decay, adapts) in enumerate(flags)
    ]
    return optimizer_class(groups, lr=0.03, **options)


def bits(tensors) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def assert_bit_equal(first, second) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_paths_give_the_same_bits_on_a_cpu(optimizer_class, dtype):
    results = []
    for foreach in (False, True):
        params = [*make_params(dtype), *make_params(torch.float32)]  # two dtypes in one group
        optimizer = make_optimizer(optimizer_class, params, foreach=foreach)
        for seed in range(5):
            set_grads(params, seed)
            optimizer.step()
        state = [value for param in params for value in optimizer.state[param].values()]
        results.append(bits([*params, *state]))
    assert_bit_equal(*results)


@both
@paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_have_float32_state_and_are_rounded_once(optimizer_class, foreach, dtype):
    narrow = make_params(dtype)
    optimizer = make_optimizer(optimizer_class, narrow, foreach=foreach)
    for seed in range(4):
        set_grads(narrow, seed)
        # The same step in float32, from the same weights, gradients and state.
        wide = [torch.nn.Parameter(param.detach().float()) for param in narrow]
        for one, other in zip(wide, narrow, strict=True):
            one.grad = other.grad.float()
        twin = make_optimizer(optimizer_class, wide, foreach=foreach)
        twin.load_state_dict(optimizer.state_dict())
        optimizer.step()
        twin.step()
        assert_bit_equal(narrow, [param.detach().to(dtype) for param in wide])
        for one, other in zip(wide, narrow, strict=True):
            assert_bit_equal(twin.state[one].values(), optimizer.state[other].values())
            assert all(value.dtype == torch.float32 for value in optimizer.state[other].values())


@both
@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["paper", "timm"])
def test_a_saved_optimizer_goes_on_bit_for_bit(optimizer_class, foreach, dtype, preset):
    """torch itself would round the float32 state of bfloat16 parameters to bfloat16 here."""
    straight = make_params(dtype)
    options = {"foreach": foreach, **(LARS_PRESETS if optimizer_class is LARS else LAMB_PRESETS)[preset]}
    first = make_optimizer(optimizer_class, straight, **options)
    for seed in range(6):
        if seed == 3:
            resumed = [torch.nn.Parameter(param.detach().clone()) for param in straight]
            second = make_optimizer(optimizer_class, resumed, **options)
            second.load_state_dict(through_a_file(first.state_dict()))
        set_grads(straight, seed)
        first.step()
        if seed >= 3:
            set_grads(resumed, seed)
            second.step()
    assert_bit_equal(resumed, straight)
    for one, other in zip(resumed, straight, strict=True):
        assert_bit_equal(second.state[one].values(), first.state[other].values())


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@both
def test_state_is_tensors_and_groups_are_plain_values(optimizer_class):
    params = make_params(torch.float32)
    optimizer = make_optimizer(optimizer_class, params)
    set_grads(params, 0)
    optimizer.step()
    state_dict = optimizer.state_dict()
    assert sorted(state_dict["state"]) == list(range(len(params)))
    assert all(type(value) is torch.Tensor for state in state_dict["state"].values() for value in state.values())
    for group in state_dict["param_groups"]:
        values = [
            value for entry in group.values() for value in (entry if isinstance(entry, (list, tuple)) else [entry])
        ]
        assert all(value is None or isinstance(value, (bool, int, float, str)) for value in values)


@both
def test_a_loaded_optimizer_shares_no_memory_with_the_state_it_was_given(optimizer_class):
    params = make_params(torch.float32)
    first, second = (make_optimizer(optimizer_class, params) for _ in range(2))
    set_grads(params, 0)
    first.step()
    second.load_state_dict(first.state_dict())
    before = bits(value for param in params for value in second.state[param].values())
    first.step()
    assert_bit_equal([value for param in params for value in second.state[param].values()], before)


@both
def test_hooks_on_loading_still_count(optimizer_class):
    params = make_params(torch.float32)
    first, second = (make_optimizer(optimizer_class, params) for _ in range(2))
    set_grads(params, 0)
    first.step()

    def zero_state(_, state_dict):
        zeros = {k: {n: torch.zeros_like(v) for n, v in s.items()} for k, s in state_dict["state"].items()}
        return {**state_dict, "state": zeros}

    second.register_load_state_dict_pre_hook(zero_state)
    second.load_state_dict(first.state_dict())
    assert all(value.count_nonzero() == 0 for param in params for value in second.state[param].values())


@both
def test_a_copied_optimizer_steps_like_the_original(optimizer_class):
    params = make_params(torch.float32)
    optimizer = make_optimizer(optimizer_class, params)
    set_grads(params, 0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    copied_params = [param for group in copied.param_groups for param in group["params"]]
    order = [param for group in optimizer.param_groups for param in group["params"]]
    for one, other in zip(copied_params, order, strict=True):
        one.grad = other.grad.clone()
    optimizer.step()
    copied.step()
    assert_bit_equal(copied_params, order)


@both
def test_the_closure_runs_once_and_makes_the_gradients_of_the_step_and_its_loss_comes_back(optimizer_class):
    param, twin = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_class([param], lr=0.1)
    twin.grad = 2 * torch.ones(3)
    optimizer_class([twin], lr=0.1).step()
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert calls == [True]
    assert torch.equal(param, twin)


@both
@paths
def test_a_parameter_without_gradient_is_not_touched(optimizer_class, foreach):
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_class([used, unused], lr=0.1, foreach=foreach)
    used.grad = torch.ones(3)
    optimizer.step()
    assert unused.tolist() == [1.0, 1.0, 1.0]
    assert len(optimizer.state) == 1


def test_norms_of_large_float32_tensors_are_right_on_a_cpu():
    """Adding 2^22 squares one after the other in float32 is off by 9e-5; rows of 2^11 leave rounding of about 1e-7."""
    tensor = torch.randn(2**11, 2**11, generator=torch.Generator().manual_seed(0))
    truth = tensor.double().square().sum().sqrt().item()
    assert l2_norm(tensor).item() == pytest.approx(truth, rel=1e-6)
    assert l2_norms([tensor, tensor[:1]])[0].item() == pytest.approx(truth, rel=1e-6)


SHAPES = [(), (1,), (4095,), (4096,), (4097,), (8191,), (64, 64, 3, 3), (3, 2, 1, 4097)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm_is_that_of_all_elements_in_whatever_order_they_lie(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = tensor.square().sum().sqrt().item()
    orders = [tensor, tensor.mT if len(shape) > 1 else tensor, tensor[..., None].expand(*shape, 4) / 2]
    if len(shape) == 4:
        orders.append(tensor.to(memory_format=torch.channels_last))
    for one in orders:
        assert l2_norm(one).item() == pytest.approx(truth, rel=1e-14)


@settings(max_examples=50, deadline=None)
@given(
    weight_norm=st.floats(0, 1e6),
    direction_norm=st.floats(0, 1e6),
    coefficient=st.floats(1e-4, 10),
    weight_decay=st.floats(0, 1),
)
def test_the_trust_ratio_is_its_formula_and_never_nan(weight_norm, direction_norm, coefficient, weight_decay):
    norms = torch.tensor([weight_norm, direction_norm], dtype=torch.float64)
    ratio = trust_ratio(norms[0], norms[1], coefficient=coefficient, weight_decay=weight_decay).item()
    if weight_norm > 0 and direction_norm > 0:
        formula = coefficient * weight_norm / (direction_norm + weight_decay * weight_norm)
        assert ratio == pytest.approx(formula, rel=1e-14)
    else:
        assert ratio == 1.0

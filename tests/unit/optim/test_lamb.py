"""LAMB: closed forms and invariances. Its trajectories are in test_forms.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.optim import LAMB
from tests.reference.lars_lamb import FLAGS
from tests.unit.optim.forms import norm, parameter, random_pair

pytestmark = [pytest.mark.quick, pytest.mark.other_processor]

seeds = st.integers(0, 2**32 - 1)


def test_two_steps_by_hand():
    # Step 1: m^ = g and v^ = g^2, so r = [0, 1], u = [0, 1] + 0.1 [3, 4] = [0.3, 1.4], ratio 5 / sqrt(2.05).
    # Step 2 with g = 0: m^ = [0, 1] / 0.75 * 0.5 (beta1 = 0.5), v^ = 4 * 0.25 * 0.75 / (1 - 0.75^2), no ratio.
    param = parameter([3.0, 4.0], [0.0, 2.0])
    optimizer = LAMB([param], lr=0.1, betas=(0.5, 0.75), eps=1e-30, weight_decay=0.1)
    optimizer.step()
    first = [3 - 0.1 * 5 / 2.05**0.5 * 0.3, 4 - 0.1 * 5 / 2.05**0.5 * 1.4]
    assert param.tolist() == pytest.approx(first, rel=1e-15)
    optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0, adapts=False)
    param.grad.zero_()
    optimizer.step()
    update = (0.25 * 2 / 0.75) / (0.25 * 0.75 * 4 / (1 - 0.75**2)) ** 0.5
    assert param.tolist() == pytest.approx([first[0], first[1] - update], rel=1e-15)


@settings(max_examples=50, deadline=None)
@given(
    seed=seeds,
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    lr=st.floats(1e-3, 10.0),
    gradient_scale=st.floats(1e-3, 1e3),
)
def test_every_step_is_lr_times_the_norm_of_the_tensor(seed, weight_decay, lr, gradient_scale):
    weight, grad = random_pair(seed)
    param = parameter(weight, gradient_scale * grad)
    optimizer = LAMB([param], lr=lr, weight_decay=weight_decay)
    for _ in range(3):
        before = param.detach().clone()
        optimizer.step()
        # The new weight is rounded to 2^-53 of itself, and so is the difference of both.
        assert norm(param - before) == pytest.approx(lr * norm(before), rel=1e-14, abs=1e-15 * (1 + lr) * norm(before))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_without_eps_the_scale_of_the_gradients_cancels(seed, scale):
    weight, _ = random_pair(seed)
    ours, scaled = parameter(weight, weight), parameter(weight, weight)
    optimizers = [LAMB([param], lr=0.1, eps=0.0) for param in (ours, scaled)]
    for step in range(3):
        grad = random_pair(seed % 4 + 4 * step)[1]
        ours.grad, scaled.grad = grad, scale * grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(scaled, ours, rtol=0, atol=1e-14 * norm(weight))


def test_without_decay_lamb_is_not_adam():
    """The defect of coupling both decisions: at weight_decay=0 the ratio is skipped and Adam remains."""
    weight, grad = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    adapted, plain = parameter(weight, grad), parameter(weight, grad)
    LAMB([adapted], lr=0.1, weight_decay=0.0).step()
    torch.optim.Adam([plain], lr=0.1, eps=1e-6).step()
    assert (plain - weight).tolist() == pytest.approx([-0.1, 0.1], rel=1e-5)
    assert (adapted - weight).tolist() == pytest.approx([-0.5 / 2**0.5, 0.5 / 2**0.5], rel=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_zero_initialised_tensor_moves_by_lr_per_entry(foreach):
    param = parameter([0.0, 0.0], [1.0, -2.0])
    LAMB([param], lr=0.25, eps=0.0, foreach=foreach).step()
    assert param.tolist() == [-0.25, 0.25]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_zero_update_leaves_the_tensor_as_it_was(foreach):
    param = parameter([3.0, 4.0], [0.0, 0.0])
    LAMB([param], lr=0.25, weight_decay=0.0, foreach=foreach).step()
    assert param.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("foreach", [False, True])
def test_decay_and_adaptation_are_independent_flags(foreach):
    params = {flags: parameter([3.0, 4.0], [0.0, 2.0]) for flags in FLAGS}
    groups = [{"params": [param], "weight_decay": wd, "adapts": adapts} for (wd, adapts), param in params.items()]
    LAMB(groups, lr=0.1, eps=1e-30, foreach=foreach).step()
    norm_with_decay = (0.15**2 + 1.2**2) ** 0.5
    expected = {
        (0.05, True): [3 - 0.5 / norm_with_decay * 0.15, 4 - 0.5 / norm_with_decay * 1.2],
        (0.05, False): [3 - 0.1 * 0.15, 4 - 0.1 * 1.2],
        (0.0, True): [3, 4 - 0.5],
        (0.0, False): [3, 4 - 0.1],
    }
    for flags, param in params.items():
        assert param.tolist() == pytest.approx(expected[flags], rel=1e-15), flags


@pytest.mark.parametrize("foreach", [False, True])
def test_a_parameter_that_joins_late_has_its_own_bias_correction(foreach):
    early, late = parameter([3.0, 4.0], [0.0, 2.0]), parameter([3.0, 4.0], [0.0, 2.0])
    late.grad = None
    # Without a ratio, which would hide a wrong factor of the update.
    optimizer = LAMB([early, late], lr=0.5, weight_decay=0.0, adapts=False, foreach=foreach)
    for _ in range(5):
        optimizer.step()
    assert late.tolist() == [3.0, 4.0]
    late.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    optimizer.step()
    assert late.tolist() == pytest.approx([2.5, 4.5], rel=1e-6)  # eps is 1e-6
    assert optimizer.state[early]["step"].item() == 6
    assert optimizer.state[late]["step"].item() == 1


@settings(max_examples=50, deadline=None)
@given(
    seed=seeds,
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    bounds=st.tuples(st.floats(0, 10), st.floats(1e-3, 10)).map(sorted),
    bias_correction=st.booleans(),
    max_grad_norm=st.sampled_from([None, 0.1]),
    grad_averaging=st.booleans(),
)
def test_every_step_is_lr_times_phi_of_the_norm_of_the_tensor(seed, weight_decay, bounds, **form):
    weight, grad = random_pair(seed)
    param = parameter(weight, grad)
    optimizer = LAMB([param], lr=0.1, weight_decay=weight_decay, norm_bounds=tuple(bounds), **form)
    for _ in range(3):
        before = param.detach().clone()
        optimizer.step()
        phi = min(max(norm(before), bounds[0]), bounds[1])
        assert norm(param - before) == pytest.approx(0.1 * phi, rel=1e-13, abs=1e-15 * norm(before))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, weight_scale=st.floats(1e-2, 1e2), weight_decay=st.sampled_from([0.0, 0.05]))
def test_with_trust_clip_a_step_is_the_shorter_of_lambs_and_adams(seed, weight_scale, weight_decay):
    weight, grad = random_pair(seed)
    steps = []
    for options in ({"trust_clip": True}, {}, {"adapts": False}):
        param = parameter(weight_scale * weight, grad)
        LAMB([param], lr=0.1, weight_decay=weight_decay, **options).step()
        steps.append(param.detach() - weight_scale * weight)
    shorter = min(steps[1:], key=norm)
    torch.testing.assert_close(steps[0], shorter, rtol=1e-12, atol=1e-14 * weight_scale)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    weight_decay=st.sampled_from([0.0, 0.05]),
    decay_placement=st.sampled_from(["inside", "outside"]),
    norm_bounds=st.sampled_from([None, (0.5, 1.0)]),
    trust_clip=st.booleans(),
    adapts=st.booleans(),
)
def test_a_tensor_that_does_not_adapt_is_torch_adamw_in_every_form(seed, weight_decay, adapts, **form):
    if adapts and weight_decay != 0:
        return
    weight, _ = random_pair(seed)
    ours, theirs = parameter(weight, weight), parameter(weight, weight)
    options = {"weight_decay": weight_decay, "adapts": adapts, "adapt_undecayed": False, **form}
    lamb = LAMB([ours], lr=0.1, **options)
    adamw = torch.optim.AdamW([theirs], lr=0.1, eps=1e-6, weight_decay=weight_decay)
    for step in range(10):
        lamb.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = 0.1 * (step + 1) / 10
        ours.grad = theirs.grad = random_pair(seed % 4 + 4 * step)[1]
        lamb.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_decay_outside_the_ratio_by_hand(foreach):
    # w = (1 - 0.1 * 0.5) [3, 4] = [2.85, 3.8], |w| = 4.75; then u = r = [0, 1], so the step is 0.1 * 4.75 [0, 1].
    param = parameter([3.0, 4.0], [0.0, 2.0])
    options = {"eps": 1e-30, "weight_decay": 0.5, "decay_placement": "outside"}
    LAMB([param], lr=0.1, foreach=foreach, **options).step()
    assert param.tolist() == pytest.approx([2.85, 3.8 - 0.475], rel=1e-15)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_zero_initialised_tensor_steps_by_the_lower_bound_of_phi_if_there_is_one(foreach):
    for bounds, step in (((0.0, 10.0), 1.0), ((2.0, 10.0), 2.0 / 2**0.5)):
        param = parameter([0.0, 0.0], [1.0, -2.0])
        LAMB([param], lr=0.25, eps=0.0, norm_bounds=bounds, foreach=foreach).step()
        assert param.tolist() == pytest.approx([-0.25 * step, 0.25 * step], rel=1e-15)

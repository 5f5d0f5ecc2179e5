"""LARS: closed forms and invariances. Its trajectories are in test_forms.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.optim import LARS
from tests.reference.lars_lamb import ReferenceLARS
from tests.unit.optim.forms import norm, parameter, random_pair

pytestmark = [pytest.mark.quick, pytest.mark.other_processor]

TRUST = 0.02
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1e-3, 1e3)
decays = st.sampled_from([0.0, 1e-4, 0.05, 1.0])


def one_step(weight: torch.Tensor, grad: torch.Tensor, **options) -> torch.Tensor:
    """Change of the weight in one step without momentum."""
    param = parameter(weight, grad)
    LARS([param], momentum=0.0, **options).step()
    return param.detach() - weight


def test_two_steps_by_hand():
    # Step 1: ratio 0.1 * 5 / (2 + 0.2 * 5) = 1/6, v = 2 * 1/6 * ([0, 2] + 0.2 [3, 4]) = [0.2, 2.8 / 3].
    # Step 2 has no gradient, so ratio 1 and v = 0.5 v + 1 * 0.2 w.
    param = parameter([3.0, 4.0], [0.0, 2.0])
    optimizer = LARS([param], lr=2.0, momentum=0.5, weight_decay=0.2, trust_coefficient=0.1)
    optimizer.step()
    first = [3 - 0.2, 4 - 2.8 / 3]
    assert param.tolist() == pytest.approx(first, rel=1e-15)
    optimizer.param_groups[0]["lr"] = 1.0
    param.grad.zero_()
    optimizer.step()
    second = [first[0] - 0.1 - 0.2 * first[0], first[1] - 1.4 / 3 - 0.2 * first[1]]
    assert param.tolist() == pytest.approx(second, rel=1e-15)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_lars_with_its_defaults_is_not_sgd(weight_decay):
    """The defect of a ratio that is skipped without decay: what remains is SGD."""
    weight, grad = random_pair(0)
    adapted, plain = parameter(weight, grad), parameter(weight, grad)
    LARS([adapted], lr=1.0, weight_decay=weight_decay).step()
    torch.optim.SGD([plain], lr=1.0, momentum=0.9, weight_decay=weight_decay).step()
    assert norm(adapted - plain) > 0.9 * norm(grad)
    assert norm(adapted - weight) == pytest.approx(0.001 * norm(weight), rel=1e-3)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_zero_initialised_tensor_moves_by_lr_times_its_gradient(foreach):
    param = parameter([0.0, 0.0], [1.0, -2.0])
    LARS([param], lr=0.25, foreach=foreach).step()
    assert param.tolist() == [-0.25, 0.5]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_zero_gradient_leaves_plain_decay(foreach):
    param = parameter([3.0, 4.0], [0.0, 0.0])
    LARS([param], lr=0.5, weight_decay=0.25, foreach=foreach).step()
    assert param.tolist() == [3.0 - 0.5 * 0.25 * 3.0, 4.0 - 0.5 * 0.25 * 4.0]


@pytest.mark.parametrize("foreach", [False, True])
def test_decay_and_adaptation_are_independent_flags(foreach):
    weight, grad = [3.0, 4.0], [0.0, 2.0]
    params = {flags: parameter(weight, grad) for flags in [(0.2, True), (0.2, False), (0.0, True), (0.0, False)]}
    groups = [{"params": [param], "weight_decay": wd, "adapts": adapts} for (wd, adapts), param in params.items()]
    LARS(groups, lr=1.0, trust_coefficient=0.1, foreach=foreach).step()
    assert params[0.2, True].tolist() == pytest.approx([3 - 0.6 / 6, 4 - 2.8 / 6], rel=1e-15)  # ratio 0.5 / (2 + 1)
    assert params[0.2, False].tolist() == pytest.approx([3 - 0.6, 4 - 2.8], rel=1e-15)
    assert params[0.0, True].tolist() == pytest.approx([3, 4 - 2 * 0.25], rel=1e-15)  # ratio 0.5 / 2
    assert params[0.0, False].tolist() == pytest.approx([3, 4 - 2], rel=1e-15)


@pytest.mark.parametrize("changing", [False, True])
def test_the_rate_inside_the_velocity_matters_only_if_it_changes(changing):
    weight, _ = random_pair(0)
    options = {"momentum": 0.9, "weight_decay": 0.05, "trust_coefficient": TRUST}
    outside = ReferenceLARS(weight.numpy(), adapts=True, lr_placement="outside", **options)
    param = parameter(weight, weight)
    optimizer = LARS([param], lr=1.0, **options)
    for step in range(20):
        lr = optimizer.param_groups[0]["lr"] = (step + 1) / 20 if changing else 0.5
        param.grad = random_pair(4 * step)[1]
        outside.step(param.grad.numpy(), lr)
        optimizer.step()
    displacement = np.abs(outside.weight - weight.numpy()).max()
    difference = np.abs(param.detach().numpy() - outside.weight).max() / displacement
    if changing:
        assert difference > 0.05
    else:
        assert difference < 1e-13


@settings(max_examples=50, deadline=None)
@given(seed=seeds, weight_decay=decays, lr=st.floats(1e-3, 10.0), gradient_scale=scales)
def test_a_step_without_momentum_is_at_most_lr_times_trust_times_the_norm(seed, weight_decay, lr, gradient_scale):
    weight, grad = random_pair(seed)
    step = one_step(weight, gradient_scale * grad, lr=lr, weight_decay=weight_decay, trust_coefficient=0.01)
    bound = lr * 0.01 * norm(weight)
    # The weight minus the step is rounded to 2^-53 |w|, which is all that the difference can be wrong by.
    slack = 1e-15 * norm(weight) + 1e-14 * bound
    assert norm(step) <= bound + slack
    if weight_decay == 0:
        assert norm(step) >= bound - slack


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=scales)
def test_without_decay_the_scale_of_the_gradient_cancels(seed, scale):
    weight, grad = random_pair(seed)
    step, scaled = (one_step(weight, factor * grad, lr=0.5, weight_decay=0.0) for factor in (1.0, scale))
    torch.testing.assert_close(scaled, step, rtol=0, atol=1e-15 * max(1.0, float(weight.abs().max())))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, scale=scales, weight_decay=decays)
def test_a_rescaled_scale_invariant_layer_takes_the_rescaled_step(seed, scale, weight_decay):
    """(w, g, decay) -> (a w, g / a, decay / a^2), as in front of a normalisation, turns the step into a times it."""
    weight, grad = random_pair(seed)
    step = one_step(weight, grad, lr=0.5, weight_decay=weight_decay)
    scaled = one_step(scale * weight, grad / scale, lr=0.5, weight_decay=weight_decay / scale**2)
    torch.testing.assert_close(scaled / scale, step, rtol=0, atol=2e-15 * max(1.0, float(weight.abs().max())))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, weight_decay=decays, lr=st.floats(1e-3, 10.0), gradient_scale=scales)
def test_with_the_joint_denominator_a_step_is_always_lr_times_trust_times_the_norm(
    seed, weight_decay, lr, gradient_scale
):
    weight, grad = random_pair(seed)
    options = {"lr": lr, "weight_decay": weight_decay, "trust_coefficient": 0.01, "denominator": "joint"}
    step = one_step(weight, gradient_scale * grad, **options)
    assert norm(step) == pytest.approx(lr * 0.01 * norm(weight), rel=1e-14, abs=1e-15 * norm(weight))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, weight_decay=decays, lr=st.floats(1e-3, 10.0), gradient_scale=scales)
def test_with_clip_no_rate_is_above_lr_nor_above_the_ratio(seed, weight_decay, lr, gradient_scale):
    weight, grad = random_pair(seed)
    options = {"weight_decay": weight_decay, "trust_coefficient": 0.01}
    clipped = one_step(weight, gradient_scale * grad, lr=lr, clip=True, **options)
    sgd = one_step(weight, gradient_scale * grad, lr=lr, adapts=False, weight_decay=weight_decay)
    ratio = one_step(weight, gradient_scale * grad, lr=1.0, **options)
    shorter = min(sgd, ratio, key=norm)
    torch.testing.assert_close(clipped, shorter, rtol=1e-10, atol=1e-14 * max(1.0, float(weight.abs().max())))


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    weight_decay=decays,
    denominator=st.sampled_from(["split", "joint"]),
    lr_placement=st.sampled_from(["inside", "outside"]),
    nesterov=st.booleans(),
    clip=st.booleans(),
    eps=st.sampled_from([0.0, 0.1]),
)
def test_an_excluded_tensor_is_torch_sgd_in_every_form(seed, weight_decay, nesterov, lr_placement, **form):
    """Under a constant rate if it is inside, under any if it is outside the velocity."""
    weight, _ = random_pair(seed)
    ours, theirs = parameter(weight, weight), parameter(weight, weight)
    decay = {"weight_decay": weight_decay}
    lars = LARS([ours], lr=0.1, adapts=False, nesterov=nesterov, lr_placement=lr_placement, **decay, **form)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=nesterov, **decay)
    for step in range(5):
        if lr_placement == "outside":
            lars.param_groups[0]["lr"] = sgd.param_groups[0]["lr"] = 0.1 * (step + 1)
        ours.grad = theirs.grad = random_pair(seed % 4 + 4 * step)[1]
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_without_adaptation_of_the_undecayed_a_group_without_decay_is_sgd(foreach):
    decayed, undecayed = parameter([3.0, 4.0], [0.0, 2.0]), parameter([3.0, 4.0], [0.0, 2.0])
    groups = [{"params": [decayed], "weight_decay": 0.2}, {"params": [undecayed], "weight_decay": 0.0}]
    LARS(groups, lr=1.0, trust_coefficient=0.1, adapt_undecayed=False, foreach=foreach).step()
    assert decayed.tolist() == pytest.approx([3 - 0.6 / 6, 4 - 2.8 / 6], rel=1e-15)
    assert undecayed.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("lr_placement", ["inside", "outside"])
def test_clip_at_a_rate_of_zero_moves_nothing_and_divides_by_nothing(foreach, lr_placement):
    param = parameter([3.0, 4.0], [0.0, 2.0])
    optimizer = LARS([param], lr=0.0, clip=True, lr_placement=lr_placement, foreach=foreach)
    optimizer.step()
    assert param.tolist() == [3.0, 4.0]
    assert optimizer.state[param]["momentum_buffer"].isfinite().all()

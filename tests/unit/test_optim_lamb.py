"""LAMB against the paper: a float64 reference, closed forms and invariances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.optim import LAMB
from tests.reference.lars_lamb import FLAGS, NUM_STEPS, ErrorMeter, ReferenceLAMB, courses, warmup_then_cosine

BETAS, EPS = (0.9, 0.99), 1e-6
seeds = st.integers(0, 2**32 - 1)


def parameter(values: torch.Tensor | list[float], grad: torch.Tensor | list[float]) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())
    param.grad = torch.as_tensor(grad, dtype=torch.float64)
    return param


def random_pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = [(6, 4), (3, 2, 2), (5,), (1,)][seed % 4]
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))


def norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach()))


def error_of_a_trajectory(dtype: torch.dtype, foreach: bool | None) -> float:
    meter = ErrorMeter()
    groups, tensors = [], []
    for number, (weight_decay, adapts) in enumerate(FLAGS):
        flags = {"weight_decay": weight_decay, "adapts": adapts}
        group = {"params": [], **flags}
        for course in courses(seed=number):
            param = torch.nn.Parameter(torch.tensor(course.weight, dtype=dtype))
            group["params"].append(param)
            tensors.append((param, course.grads, ReferenceLAMB(course.weight, betas=BETAS, eps=EPS, **flags)))
        groups.append(group)
    optimizer = LAMB(groups, lr=0.0, betas=BETAS, eps=EPS, foreach=foreach)
    for step in range(NUM_STEPS):
        lr = warmup_then_cosine(step, peak=0.02)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for param, grads, reference in tensors:
            param.grad = torch.tensor(grads[step], dtype=dtype)
            reference.step(grads[step], lr)
        optimizer.step()
        for number, (param, _, reference) in enumerate(tensors):
            state = optimizer.state[param]
            meter.compare(f"weight {number}", param.detach().numpy(), reference.weight)
            meter.compare(f"first moment {number}", state["exp_avg"].numpy(), reference.m)
            meter.compare(f"second moment {number}", state["exp_avg_sq"].numpy(), reference.v)
            assert state["step"].item() == reference.t == step + 1
    return meter.worst


# Every step rounds about ten times, by 2^-53 or 2^-24 at most. Were all errors to add up: 60 * 10 * 2^-53 = 7e-14. In
# float32 the weight is rounded 60 times, sqrt(60) * 2^-24 = 5e-7 as a random walk. The moments are wrong by a few 1e-7
# (0.99 itself is by 3e-8), which steps of at most 2 % of the weight make small there.
@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_sixty_steps_at_a_changing_rate_equal_the_paper_in_weights_and_state(dtype, tolerance, foreach):
    assert error_of_a_trajectory(dtype, foreach) <= tolerance


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


def test_without_adaptation_lamb_is_torch_adamw():
    weight, _ = random_pair(1)
    ours, theirs = parameter(weight, weight), parameter(weight, weight)
    lamb = LAMB([ours], lr=0.1, weight_decay=0.05, adapts=False)
    adamw = torch.optim.AdamW([theirs], lr=0.1, eps=1e-6, weight_decay=0.05)
    for step in range(20):
        lamb.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = 0.1 * (step + 1) / 20
        ours.grad = theirs.grad = random_pair(4 * step + 1)[1]
        lamb.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


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

"""The preconditioner of an optimizer is what its step multiplies a gradient by: the optimizer itself is the witness."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, NAdam, RMSprop

from largebatch.optim import LAMB, LARS, MuonWithAdamW, OptimizerGeometry

LR = 0.01


def drawn(shapes: Iterable[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def with_adamw(params: list[nn.Parameter], **options: Any) -> MuonWithAdamW:
    groups = [{"params": params[:2], "muon": True}, {"params": params[2:], "muon": False}]
    return MuonWithAdamW(groups, **options)


# Without momentum and decay a step on the gradient that came before is -lr P g.
ALL, MATRICES = ((5, 9), (9, 5), (7,)), ((5, 9), (9, 5))
OPTIMIZERS: dict[str, tuple[Callable[..., Any], Any, float]] = {
    "SGD": (SGD, ALL, 1e-9),
    "LARS": (partial(LARS, momentum=0.0, weight_decay=0.0, trust_coefficient=0.1), ALL, 1e-9),
    "LARS, joint": (partial(LARS, momentum=0.0, weight_decay=0.0, denominator="joint", eps=0.3), ALL, 1e-9),
    "Adam": (partial(Adam, betas=(0.0, 0.9), eps=0.3), ALL, 1e-9),
    "amsgrad": (partial(Adam, betas=(0.0, 0.9), eps=0.3, amsgrad=True), ALL, 1e-9),
    "AdamW": (partial(AdamW, betas=(0.0, 0.9), eps=0.3, weight_decay=0.0), ALL, 1e-9),
    "NAdam": (partial(NAdam, betas=(0.0, 0.9), eps=0.3), ALL, 1e-9),
    "RMSprop": (partial(RMSprop, alpha=0.0, eps=0.3), ALL, 1e-9),
    "LAMB": (partial(LAMB, betas=(0.0, 0.9), eps=0.3, weight_decay=0.0), ALL, 1e-9),
    "LAMB, raw": (partial(LAMB, betas=(0.0, 0.0), weight_decay=0.0, bias_correction=False, trust_clip=True), ALL, 1e-9),
    # torch iterates in bfloat16, whose 8 bits are rounded five times.
    "Muon": (partial(Muon, momentum=0.0, nesterov=False, weight_decay=0.0), MATRICES, 0.03),
    "Muon with AdamW": (partial(with_adamw, momentum=0.0, betas=(0.0, 0.9), weight_decay=0.0), ALL, 0.03),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_lowers_a_linear_loss_by_the_rate_times_the_squared_norm(name):
    make, shapes, close = OPTIMIZERS[name]
    params = [nn.Parameter(one) for one in drawn(shapes, 0)]
    optimizer = make(params, lr=LR)
    gradients = drawn(shapes, 1)
    for one, gradient in zip(params, gradients, strict=True):
        one.grad = gradient.clone()
    for _ in range(12):  # until a second moment is old enough
        optimizer.step()
    metrics = OptimizerGeometry(optimizer).metrics(params) or []
    expected = [
        LR * float(metric.sq_norm(gradient) * (1 if metric.factor is None else metric.factor(gradient)))
        for metric, gradient in zip(metrics, gradients, strict=True)
    ]
    before = [one.detach().clone() for one in params]
    optimizer.step()
    decrease = [float(((w - p.detach()) * g).sum()) for w, p, g in zip(before, params, gradients, strict=True)]
    assert decrease == pytest.approx(expected, rel=close)


def test_the_spectral_preconditioner_is_the_iteration_of_newton_and_schulz_without_rounding():
    """In float64, for both sides of a matrix: P applied to the momentum, against torch's loop written out."""
    for matrix in drawn(MATRICES, 2):
        param = nn.Parameter(torch.zeros_like(matrix))
        optimizer = Muon([param], lr=LR, adjust_lr_fn="match_rms_adamw")
        optimizer.state[param]["momentum_buffer"] = matrix
        [metric] = OptimizerGeometry(optimizer).metrics([param]) or [None]
        iterate = matrix / matrix.norm()
        a, b, c = optimizer.param_groups[0]["ns_coefficients"]
        for _ in range(5):
            gram = iterate @ iterate.T
            iterate = a * iterate + (b * gram + c * gram @ gram) @ iterate
        assert metric is not None
        expected = 0.2 * 3.0 * float((matrix * iterate).sum())
        assert float(metric.sq_norm(matrix)) == pytest.approx(expected, rel=1e-10)


def test_groups_weigh_by_their_rates_and_what_is_not_stepped_weighs_nothing():
    fast, slow, foreign = (nn.Parameter(one) for one in drawn([(3,), (3,), (3,)], 0))
    optimizer = SGD([{"params": [fast]}, {"params": [slow], "lr": 0.25 * LR, "lr_factor": 0.25}], lr=LR)
    geometry, gradient = OptimizerGeometry(optimizer), torch.tensor([2.0, 1.0, 2.0])
    for rate in (1.0, 0.0):  # a warmup may begin at 0
        for group in optimizer.param_groups:
            group["lr"] *= rate
        one, other, none = geometry.metrics([fast, slow, foreign]) or []
        assert (float(one.sq_norm(gradient)), float(other.sq_norm(gradient)), none) == (9.0, 2.25, None)
    assert not geometry.is_euclidean
    assert OptimizerGeometry(SGD([fast, slow], lr=LR)).is_euclidean


@pytest.mark.parametrize(("make", "steps"), [(AdamW, 10), (partial(LAMB, betas=(0.9, 0.1)), 2), (RMSprop, 10)])
def test_the_preconditioner_of_a_young_second_moment_is_not_measured_and_then_it_is_nearly_the_true_one(make, steps):
    """On noise of standard deviation 1/2 its mean is 1 / (1/2), but for what ten draws leave: 8 %."""
    noise = drawn([(4000,)] * steps, 0)
    param = nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    optimizer = make([param], lr=0.0)
    geometry, found = OptimizerGeometry(optimizer), []
    for one in noise:
        found.append(geometry.metrics([param]))
        param.grad = 0.5 * one
        optimizer.step()
    assert found == [None] * steps
    [metric] = geometry.metrics([param]) or [None]
    if make is AdamW:  # LAMB has a ratio, RMSprop corrects nothing, and two draws leave much
        count = torch.tensor(float(steps))
        excess = (count / 2).sqrt() * torch.exp(torch.lgamma((count - 1) / 2) - torch.lgamma(count / 2))
        assert excess == pytest.approx(1.084, abs=1e-3)
        # The mean of 4,000 with a relative deviation of 27 %: three of its standard errors are 1.3 %.
        assert float(metric.sq_norm(torch.ones(4000))) / 4000 == pytest.approx(2 * float(excess), rel=0.013)


def test_a_part_that_began_late_and_elements_that_never_had_a_gradient_weigh_nothing():
    param, late = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = AdamW([param, late], betas=(0.9, 0.999))
    for step in range(12):
        param.grad, late.grad = torch.tensor([1.0, -1.0, 0.0]), torch.ones(3) if step > 5 else None
        optimizer.step()
    one, other = OptimizerGeometry(optimizer).metrics([param, late]) or []
    assert other is None
    assert float(one.sq_norm(torch.tensor([2.0, 0.0, 5.0]))) == pytest.approx(4.0, rel=1e-6), "not 25 / eps"


def test_an_optimizer_whose_preconditioner_is_not_known_is_refused():
    param = nn.Parameter(torch.ones(2, 2))

    class Own(SGD):
        pass

    with pytest.raises(ValueError, match="preconditioner of Own is not known"):
        OptimizerGeometry(Own([param], lr=LR))
    with pytest.raises(ValueError, match="is not above 0"):
        OptimizerGeometry(Muon([param], ns_coefficients=(2.0, -5.0, 2.0)))


@pytest.mark.parametrize("make", [AdamW, LAMB, RMSprop])
def test_the_steps_of_all_parameters_are_read_at_once(make, monkeypatch):
    """Those of fused optimizers lie on the device: a read of each would wait for it as often."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    optimizer = make(params)
    for _ in range(10):
        for one in params:
            one.grad = torch.ones(3)
        optimizer.step()

    def wait(_: Tensor) -> float:
        raise AssertionError("waits for the device")

    monkeypatch.setattr(Tensor, "__float__", wait)
    monkeypatch.setattr(Tensor, "item", wait)
    assert None not in (OptimizerGeometry(optimizer).metrics(params) or [None])

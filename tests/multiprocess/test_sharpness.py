"""Sharpness against dense Hessians, equal on any number of ranks, and without a trace in the model."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.data import ArrayDataset, masked_tokens
from largebatch.diagnostics.sharpness.measurement import Sharpness, measure_sharpness
from largebatch.diagnostics.sharpness.subset import FixedSubset, SubsetLoss
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.snapshots import measuring
from largebatch.losses import CrossEntropy, NextToken, SquaredError
from largebatch.models import GPT, MLP, ConvNet
from largebatch.run.config.measure import SharpnessConfig
from tests.restless import Restless, bits

SETTINGS = SharpnessConfig(
    lanczos_iterations=60, lanczos_tolerance=1e-7, trace_samples=8, box_eps=1e-3, box_iterations=10,
    m=4, rho=0.05, slice_radius=1.0, line_points=5, plane_points=3,
)  # fmt: skip


def problem(kind: str, precision: str = "fp64") -> tuple[nn.Module, Any, FixedSubset]:
    torch.manual_seed(1)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    ids = np.random.default_rng(0).permutation(40)[:24]
    if kind == "tokens":
        model, loss = GPT(7, 6, num_layers=1, num_heads=2, width=4, dropout=0.3), NextToken()
        return model.to(dtype), loss, FixedSubset(masked_tokens(40, 6, 7, "train"), ids, 5)
    if kind == "images":
        dataset = ArrayDataset(torch.randn(40, 1, 8, 8), torch.randint(0, 3, (40,)))
        model = ConvNet(3, 1, width=2)
        with torch.no_grad():  # statistics as of a trained model
            for _ in range(3):
                model.train()(torch.randn(16, 1, 8, 8) + 0.3)
        return model.to(dtype), CrossEntropy(), FixedSubset(dataset, ids, 5)
    dataset = ArrayDataset(torch.randn(40, 5), torch.randint(0, 3, (40,)))
    return MLP(5, 3, hidden=[6], dropout=0.3).to(dtype), CrossEntropy(), FixedSubset(dataset, ids, 5)


def measure(kind: str, precision: str = "fp64", **changes: Any) -> Sharpness | None:
    with Runtime.open(precision=precision) as runtime:
        model, loss, subset = problem(kind, precision)
        settings = SETTINGS.model_copy(update=changes)
        return measure_sharpness(model, loss, subset, runtime, settings, seed=3, landscape=settings)


def numbers(found: Sharpness) -> dict[str, float]:
    slices = [*found.slices.line, *(loss for row in found.slices.plane for loss in row)]
    return {
        "loss": found.loss,
        "gradient_norm": found.gradient_norm,
        "lambda_max": found.lambda_max.value,
        "trace": found.trace.value,
        "trace_error": found.trace.standard_error,
        "box": found.box.value,
        "m_sharpness": found.m_sharpness.value,
        "m_error": found.m_sharpness.standard_error,
        **{f"slice {number}": loss for number, loss in enumerate(slices)},
    }


@pytest.mark.parametrize(("kind", "world_size"), [("classes", 2), ("classes", 4), ("images", 3), ("tokens", 3)])
def test_any_number_of_ranks_measures_the_same(ranks, kind, world_size):
    """5 batches over 4 ranks, 24 samples in batches of 5, and tokens, of which samples have unequal numbers.

    What is measured need not have converged for that.
    """
    few = {"lanczos_iterations": 12, "trace_samples": 4, "box_iterations": 4}
    (alone,) = ranks(1).run(measure, kind, **few)
    found, *others = ranks(world_size).run(measure, kind, **few)
    assert others == [None] * (world_size - 1)
    assert numbers(found) == pytest.approx(numbers(alone), rel=1e-8, abs=1e-10)


def test_in_float32_two_ranks_measure_the_same_to_a_few_digits_less(ranks):
    (alone,), (found, _) = (ranks(size).run(measure, "classes", "fp32", lanczos_tolerance=1e-6) for size in (1, 2))
    # Hundreds of roundings of 6e-8, enlarged by differences of losses: another order of sums makes some 1e-5.
    assert numbers(found) == pytest.approx(numbers(alone), rel=1e-4)


def dense(kind: str) -> tuple[torch.Tensor, float]:
    """Hessian and value of the mean loss, by torch, on one batch of everything."""
    model, loss, subset = problem(kind)
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]
    inputs, targets = subset.dataset.fetch(subset.ids)
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(model, weights, (inputs,))
        return loss.loss_per_sample(outputs, targets).sum() / loss.units_per_sample(targets).sum()

    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(mean_loss, flat), float(mean_loss(flat))


@pytest.mark.parametrize("kind", ["classes", "images", "tokens"])
def test_the_largest_eigenvalue_and_the_trace_are_those_of_the_dense_hessian(kind):
    hessian, value = dense(kind)
    found = measure(kind, trace_samples=60, box_iterations=1, plane_points=0, line_points=0)
    assert found is not None
    assert found.loss == pytest.approx(value, rel=1e-12)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert found.lambda_max.value == pytest.approx(float(eigenvalues[-1]), rel=1e-4)
    assert found.lambda_max.residual < 1e-4 * float(eigenvalues.abs().max())
    assert found.lambda_max.converged
    assert abs(found.trace.value - float(hessian.trace())) < 4 * found.trace.standard_error
    variance = 2 * float(hessian.square().sum() - hessian.diag().square().sum())
    assert found.trace.standard_error == pytest.approx((variance / 60) ** 0.5, rel=0.4)


class Distances(nn.Module):
    """Outputs (w_0 x_0, w_1 x_1): with squared errors a quadratic in w, whose Hessian is diag(mean x_i^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.weight * self.frozen


def test_on_a_quadratic_all_measures_have_their_closed_form():
    """The fifth sample makes no whole group of 2: it counts in all but the m-sharpness."""
    runtime = Runtime.open(precision="fp64")
    x = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.5, 1.0], [2.0, 2.0], [1.5, 0.25]], dtype=torch.float64)
    subset = FixedSubset(ArrayDataset(x, torch.zeros_like(x)), np.arange(5), 3)
    settings = SETTINGS.model_copy(update={"m": 2})
    found = measure_sharpness(Distances(), SquaredError(), subset, runtime, settings, seed=3, landscape=settings)
    runtime.close()
    assert found is not None
    curvature, weights = x.square().mean(dim=0), torch.tensor([2.0, -1.0], dtype=torch.float64)
    loss = float(curvature @ weights.square()) / 2
    assert found.loss == pytest.approx(loss)
    assert found.gradient_norm == pytest.approx(float((curvature * weights).norm()))
    assert found.lambda_max.value == pytest.approx(float(curvature.max()))
    assert (found.trace.value, found.trace.standard_error) == pytest.approx((float(curvature.sum()), 0.0))
    half_width = 1e-3 * (weights.abs() + 1)
    rise = float(curvature @ (weights.abs() * half_width + half_width.square() / 2))
    assert found.box.value == pytest.approx(100 * rise / (1 + loss))
    expected = []
    for group in (x[:2], x[2:4]):
        h = group.square().mean(dim=0)
        g = h * weights
        expected.append(float(0.05 * g.norm() + 0.05**2 * (h * g * g).sum() / (2 * g.square().sum())))
    assert found.m_sharpness.value == pytest.approx(sum(expected) / 2)
    assert found.m_sharpness.standard_error == pytest.approx(abs(expected[0] - expected[1]) / 2)
    assert found.slices.line == pytest.approx([loss] * 5)  # its only weight is of one dimension, which does not move


def test_m_sharpness_depends_on_m_and_there_must_be_a_group():
    """Groups of fewer samples have steeper gradients of their own."""
    quick = {"trace_samples": 2, "line_points": 0, "plane_points": 0}
    rises = [measure("classes", m=m, **quick).m_sharpness for m in (1, 4, 24)]
    assert [rise.num_samples for rise in rises] == [24, 6, 1]
    assert rises[0].value > 1.1 * rises[1].value > 1.2 * rises[2].value > 0
    with pytest.raises(ValueError, match="24 samples make no group of 25"):
        measure("classes", m=25)


def test_the_middle_of_a_slice_is_the_loss_and_both_slices_share_their_first_direction():
    found = measure("images", line_points=3)
    assert found.slices.line_positions == [-1.0, 0.0, 1.0] == found.slices.plane_positions
    assert found.slices.line[1] == pytest.approx(found.loss, rel=1e-12)
    assert found.slices.plane[1] == pytest.approx(found.slices.line, rel=1e-12)
    assert found.slices.plane[0] != pytest.approx(found.slices.plane[2], rel=1e-3)


@pytest.mark.parametrize("fails_at", [-1, 1, 9, 60])
def test_weights_buffers_modes_and_generators_are_bit_identical_afterwards(fails_at):
    torch.manual_seed(0)
    module = Restless()
    module.second.eval()
    module(torch.randn(8, 3)).square().sum().backward()
    with torch.no_grad():
        module.second.bias[0] = -0.0
    module.calls, module.fails_at = 0, fails_at
    dataset = ArrayDataset(torch.randn(40, 3), torch.randint(0, 2, (40,)))
    subset = FixedSubset(dataset, np.arange(24), 5)
    runtime = Runtime.open()
    before = bits(module)
    expected = contextlib.nullcontext() if fails_at == -1 else pytest.raises(RuntimeError, match="as asked")
    try:
        with expected:
            measure_sharpness(module, CrossEntropy(), subset, runtime, SETTINGS, seed=3)
    finally:
        runtime.close()
    assert fails_at in (-1, module.calls)
    assert bits(module) == before


def test_inside_the_module_is_in_eval_mode():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    with measuring(module):
        assert not any(part.training for part in module.modules())
    assert all(part.training for part in module.modules())


def test_a_subset_without_units_is_refused():
    with pytest.raises(ValueError, match="0 units"):
        SubsetLoss(nn.Linear(1, 1), NextToken(), [(torch.zeros(1, 2), torch.full((1, 2), -100))])


def fail_on_rank_zero(where: str) -> str:
    """What the ranks of a job see when an estimator fails between two evaluations."""
    with Runtime.open(precision="fp64") as runtime:
        model, loss, subset = problem("classes")
        import largebatch.diagnostics.sharpness.measurement as measurement

        def fail(*arguments: Any, **options: Any) -> None:
            raise FloatingPointError(where)

        kept, measurement.box_sharpness = measurement.box_sharpness, fail
        try:
            return str(measure_sharpness(model, loss, subset, runtime, SETTINGS, seed=3, landscape=SETTINGS))
        except FloatingPointError as error:
            return f"failed: {error}"
        finally:
            measurement.box_sharpness = kept


def test_an_estimator_that_fails_lets_the_other_ranks_go(ranks):
    assert ranks(2).run(fail_on_rank_zero, "box", deadline=60) == ["failed: box", "None"]

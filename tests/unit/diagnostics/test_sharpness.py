"""Estimators of sharpness against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from largebatch.diagnostics.sharpness.curvature import gaussian, hutchinson_trace, rademacher, top_eigenvalue
from largebatch.diagnostics.sharpness.rises import ascent_rise, box_sharpness
from largebatch.diagnostics.sharpness.slices import filter_normalized


def symmetric(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    draws = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(draws).Q
    return basis @ values.diag() @ basis.T


def start(size: int) -> torch.Tensor:
    return gaussian(torch.zeros(size, dtype=torch.float64), 7)


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [
        ([1.0, 2.0, 5.0, 0.1], 5.0),
        ([-9.0, -1.0, 2.0, 0.5], 2.0),  # the largest in magnitude is negative
        ([-9.0, -4.0, -1.0], -1.0),
        ([3.0, 3.0, 3.0, 1.0], 3.0),
        ([0.0, 0.0], 0.0),
    ],
)
def test_lambda_max_is_the_largest_algebraic_eigenvalue(eigenvalues, largest):
    matrix = symmetric(eigenvalues)
    found = top_eigenvalue(lambda v: matrix @ v, start(len(matrix)), max_iterations=50)
    assert found.value == pytest.approx(largest, abs=1e-9)
    assert found.residual < 1e-6
    assert found.converged
    assert found.num_products <= len(matrix) + 1


def test_full_reorthogonalisation_keeps_lanczos_right_where_eigenvalues_span_ten_decades():
    eigenvalues = [10.0 ** (-number / 20) for number in range(200)]
    matrix = symmetric([*eigenvalues, -50.0])
    found = top_eigenvalue(lambda v: matrix @ v, start(201), max_iterations=201, tolerance=1e-14)
    assert found.value == pytest.approx(1.0, abs=1e-12)
    assert found.residual < 1e-12


def test_the_residual_bounds_the_error_of_an_iteration_that_was_cut_short():
    matrix = symmetric([number / 10 for number in range(100)])
    found = top_eigenvalue(lambda v: matrix @ v, start(100), max_iterations=5)
    assert not found.converged
    assert found.num_products == 6
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert float((eigenvalues - found.value).abs().min()) <= found.residual
    assert found.residual > 1e-3


def test_a_start_without_direction_and_a_product_that_is_no_number_are_refused():
    with pytest.raises(ValueError, match="nonzero vector"):
        top_eigenvalue(lambda v: v, torch.zeros(3), max_iterations=3)
    with pytest.raises(FloatingPointError):
        top_eigenvalue(lambda v: v * math.nan, torch.ones(3), max_iterations=3)


def test_the_trace_of_a_diagonal_hessian_is_exact_with_every_probe():
    diagonal = torch.tensor([1.0, -5.0, 3.0, 0.25])
    found = hutchinson_trace(lambda v: diagonal * v, (rademacher(diagonal, key) for key in range(5)))
    assert (found.value, found.standard_error, found.num_samples) == (-0.75, 0.0, 5)


def test_the_error_of_the_trace_is_the_one_that_theory_gives():
    """Var = 2 (|H|_F^2 - sum H_ii^2) per probe; with 4000 probes the standard error itself is good to a few percent."""
    matrix = symmetric([3.0, 1.0, -2.0, 0.5, 4.0])
    found = hutchinson_trace(lambda v: matrix @ v, (rademacher(matrix[0], key) for key in range(4000)))
    variance = 2 * float(matrix.square().sum() - matrix.diag().square().sum())
    assert found.standard_error == pytest.approx(math.sqrt(variance / 4000), rel=0.05)
    assert abs(found.value - 6.5) < 4 * found.standard_error


def test_random_vectors_are_a_function_of_their_key_in_every_precision():
    for draw in (gaussian, rademacher):
        wide, narrow = draw(torch.zeros(99, dtype=torch.float64), 5), draw(torch.zeros(99), 5)
        assert torch.equal(wide.float(), narrow)
        assert not torch.equal(wide, draw(wide, 6))
    assert set(rademacher(torch.zeros(99), 1).tolist()) == {-1.0, 1.0}


def quadratic(curvature: torch.Tensor):
    """Loss and gradient of sum h_i w_i^2 / 2."""
    return lambda weights: (0.5 * float(curvature @ weights.square()), curvature * weights)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("eps", [1e-3, 5e-4])
def test_box_sharpness_of_a_separable_quadratic_is_its_closed_form(scale, eps):
    """phi = 100 sum h_i (|x_i| y_i + y_i^2 / 2) / (1 + f), y_i = eps (|x_i| + 1): the corner away from the minimum."""
    curvature = scale * torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    weights = torch.tensor([0.5, -2.0, 1.0, -0.01], dtype=torch.float64)
    found = box_sharpness(quadratic(curvature), weights, 2 * torch.rand_like(weights) - 1, eps=eps)
    half_width = eps * (weights.abs() + 1)
    rise = float(curvature @ (weights.abs() * half_width + half_width.square() / 2))
    assert found.value == pytest.approx(100 * rise / (1 + found.loss), rel=1e-9)
    assert found.loss == pytest.approx(0.5 * float(curvature @ weights.square()))


def test_at_an_exact_minimum_a_random_start_finds_what_the_centre_cannot():
    curvature, weights = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert box_sharpness(quadratic(curvature), weights, weights, eps=1e-3).value == 0.0
    found = box_sharpness(quadratic(curvature), weights, torch.tensor([0.3, -0.2], dtype=torch.float64), eps=1e-3)
    assert found.value == pytest.approx(100 * 5.0 * 1e-6 / 2)


def test_the_box_search_counts_its_evaluations_and_never_leaves_the_box():
    curvature, weights, seen = torch.ones(3), torch.tensor([1.0, -1.0, 0.0]), []

    def watched(at: torch.Tensor) -> tuple[float, torch.Tensor]:
        seen.append(at)
        return quadratic(curvature)(at)

    found = box_sharpness(watched, weights, torch.zeros(3), eps=1e-2)
    assert found.num_evaluations == len(seen)
    # Half a unit in the last place of 1 beside the step itself.
    assert all(bool(((at - weights).abs() <= 1e-2 * (weights.abs() + 1) + 1e-7).all()) for at in seen)


@pytest.mark.parametrize(("eps", "corner"), [(0.0, 0.5), (-1.0, 0.5), (1e-3, 1.5)])
def test_a_box_without_size_or_a_start_outside_is_refused(eps, corner):
    with pytest.raises(ValueError, match="start within"):
        box_sharpness(quadratic(torch.ones(1)), torch.ones(1), torch.tensor([corner]), eps=eps)


def test_beside_a_minimum_the_ascent_step_rises_by_half_rho_squared_lambda_max():
    matrix = symmetric([5.0, 1.0, 0.5])
    first = torch.linalg.eigh(matrix).eigenvectors[:, -1]

    def value(at: torch.Tensor) -> float:
        return 0.5 * float(at @ matrix @ at)

    rise = ascent_rise(lambda at: (value(at), matrix @ at), value, 1e-9 * first, rho=0.05)
    assert rise == pytest.approx(0.05**2 * 5.0 / 2, rel=1e-6)


def test_away_from_a_minimum_the_ascent_step_has_its_closed_form_and_without_slope_no_rise():
    """A quadratic: rho |g| + rho^2 g'Hg / (2 |g|^2)."""
    matrix, weights = symmetric([5.0, 1.0, -0.5]), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def value(at: torch.Tensor) -> float:
        return 0.5 * float(at @ matrix @ at)

    slope, rho = matrix @ weights, 0.1
    rise = ascent_rise(lambda at: (value(at), matrix @ at), value, weights, rho=rho)
    norm = float(slope.norm())
    assert rise == pytest.approx(rho * norm + 0.5 * rho**2 * float(slope @ matrix @ slope) / norm**2)
    assert ascent_rise(lambda at: (value(at), matrix @ at), value, 0 * weights, rho=rho) == 0.0
    with pytest.raises(ValueError, match="positive"):
        ascent_rise(lambda at: (value(at), matrix @ at), value, weights, rho=0.0)


def test_a_filter_normalized_direction_has_the_norm_of_every_filter():
    torch.manual_seed(0)
    weights = [torch.randn(4, 3, 2, 2), torch.randn(4), torch.randn(5, 7), torch.zeros(2, 3), torch.tensor(1.0)]
    raw = [torch.randn_like(weight) for weight in weights]
    raw[2][1] = 0.0  # a filter without direction stays where it is
    kernel, bias, linear, zero, scalar = filter_normalized(raw, weights)
    torch.testing.assert_close(kernel.flatten(1).norm(dim=1), weights[0].flatten(1).norm(dim=1))
    assert torch.nn.functional.cosine_similarity(kernel[1].flatten(), raw[0][1].flatten(), dim=0) > 0.99999
    rows = linear.norm(dim=1)
    assert rows[1] == 0.0
    torch.testing.assert_close(rows[[0, 2, 3, 4]], weights[2].norm(dim=1)[[0, 2, 3, 4]])
    assert all(not part.any() for part in (bias, zero, scalar))

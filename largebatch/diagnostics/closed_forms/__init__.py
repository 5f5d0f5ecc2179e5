"""Exact solutions of small tasks in float64: the reference for estimators and the training loop."""

from __future__ import annotations

from largebatch.diagnostics.closed_forms.gradient_noise import GradientNoise
from largebatch.diagnostics.closed_forms.least_squares import LeastSquares
from largebatch.diagnostics.closed_forms.quadratic import NoisyQuadratic
from largebatch.diagnostics.closed_forms.quadratic_descent import (
    Descent,
    best_rate,
    expected_losses,
    preconditioned,
    steps_to_loss,
)

__all__ = [
    "Descent",
    "GradientNoise",
    "LeastSquares",
    "NoisyQuadratic",
    "best_rate",
    "expected_losses",
    "preconditioned",
    "steps_to_loss",
]

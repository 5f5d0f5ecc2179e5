"""Exact solutions of small tasks in float64: the reference for estimators and the training loop."""

from __future__ import annotations

from largebatch.diagnostics.closed_forms.gradient_noise import GradientNoise
from largebatch.diagnostics.closed_forms.least_squares import LeastSquares
from largebatch.diagnostics.closed_forms.quadratic import NoisyQuadratic

__all__ = ["GradientNoise", "LeastSquares", "NoisyQuadratic"]

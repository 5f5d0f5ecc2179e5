"""Curvature of a loss from Hessian-vector products: the largest eigenvalue and the trace.

Not from a library, because the product is a sum over the ranks of a job, and forty lines on flat vectors are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HessianVectorProduct = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TopEigenvalue:
    """The algebraically largest eigenvalue of a symmetric operator: -1 is larger than -5.

    Attributes:
        value: Rayleigh quotient v'Hv of the unit vector v.
        residual: |Hv - value v|, from a separate product: an eigenvalue is within this distance of `value`.
        num_products: number of Hessian-vector products used.
        converged: whether the residual predicted by the recurrence is within the tolerance.
    """

    value: float
    residual: float
    num_products: int
    converged: bool


@dataclass(frozen=True)
class Estimate:
    """A mean of independent draws.

    Attributes:
        value: the mean.
        standard_error: standard error of the mean; NaN for a single draw.
        num_samples: number of draws.
    """

    value: float
    standard_error: float
    num_samples: int

    @classmethod
    def of(cls, draws: Iterable[float]) -> Estimate:
        """Mean and standard error of draws.

        >>> Estimate.of([1.0, 3.0])
        Estimate(value=2.0, standard_error=1.0, num_samples=2)
        """
        values = np.array(list(draws), dtype=np.float64)
        if not len(values):
            raise ValueError("0 draws: a mean needs at least one.")
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), error, len(values))


def top_eigenvalue(
    hvp: HessianVectorProduct, start: Tensor, *, max_iterations: int, tolerance: float = 1e-6
) -> TopEigenvalue:
    """Largest (algebraic) eigenvalue by Lanczos iterations with full reorthogonalisation.

    Keeps one vector per iteration in memory. Without reorthogonalisation, rounding would bring converged eigenvectors
    back as spurious copies. The start must not be orthogonal to the eigenvector; a Gaussian vector never is.

    Args:
        hvp: v -> Hv for flat vectors like `start`.
        start: any nonzero vector, [p].
        max_iterations: most products, without the one for the residual.
        tolerance: predicted residual that ends the iteration, relative to the largest |eigenvalue| seen.

    Raises:
        ValueError: if `start` is zero or not finite, or no iteration is allowed.
        FloatingPointError: if a product is not finite.

    Source: Golub and Van Loan 2013, Matrix Computations, sections 10.1 and 10.3.

    >>> diagonal = torch.tensor([1.0, -5.0, 3.0], dtype=torch.float64)
    >>> round(top_eigenvalue(lambda v: diagonal * v, torch.ones_like(diagonal), max_iterations=9).value, 9)
    3.0
    """
    length = _norm(start)
    if not 0 < length < math.inf or max_iterations < 1:
        raise ValueError(
            f"A start of norm {length} and max_iterations={max_iterations}: give a finite, nonzero vector and at least "
            "one iteration."
        )
    basis, diagonal, off_diagonal = [start / length], [], []  # type: ignore[var-annotated]
    while True:
        product = hvp(basis[-1])
        diagonal.append(_dot(product, basis[-1]))
        if not math.isfinite(diagonal[-1]):
            raise FloatingPointError("A Hessian-vector product is not finite: the loss or its gradient is not, here.")
        for _ in range(2):  # "twice is enough": Parlett 1998, section 6.9
            for vector in basis:
                product = product - _dot(product, vector) * vector
        rest = _norm(product)
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
        scale = float(abs(values).max())
        converged = rest * abs(vectors[-1, -1]) <= tolerance * scale or len(basis) == len(start)
        if converged or len(basis) == max_iterations:
            break
        off_diagonal.append(rest)
        basis.append(product / rest)
    found = sum(float(part) * vector for part, vector in zip(vectors[:, -1], basis, strict=True))
    assert isinstance(found, Tensor)
    found = found / _norm(found)
    product = hvp(found)
    value = _dot(product, found)
    return TopEigenvalue(value, _norm(product - value * found), len(basis) + 1, bool(converged))


def hutchinson_trace(hvp: HessianVectorProduct, probes: Iterable[Tensor]) -> Estimate:
    """Trace of the Hessian as the mean of z'Hz over random `probes` z with E[zz'] = I.

    Entries +-1 (Rademacher) have the smallest variance of a draw, 2 (|H|_F^2 - sum_i H_ii^2): 0 for a diagonal H.

    Raises:
        ValueError: if there are no probes.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".

    >>> diagonal = torch.tensor([1.0, -5.0, 3.0])
    >>> hutchinson_trace(lambda v: diagonal * v, [torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, -1.0])])
    Estimate(value=-1.0, standard_error=0.0, num_samples=2)
    """
    return Estimate.of(_dot(hvp(probe), probe) for probe in probes)


def rademacher(like: Tensor, key: int) -> Tensor:
    """Entries +1 or -1 with probability 1/2 each, a function of the 64-bit key; shape, type, device of `like`."""
    generator = torch.Generator().manual_seed(key)
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def gaussian(like: Tensor, key: int) -> Tensor:
    """Standard normal entries, the same in every precision; see `rademacher`."""
    generator = torch.Generator().manual_seed(key)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))


def _norm(vector: Tensor) -> float:
    return math.sqrt(_dot(vector, vector))

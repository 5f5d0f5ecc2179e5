"""How far a factorization is from the reference, tensor by tensor, and how far it may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from largebatch.experiments.verify.trajectories import Trajectory

# A parameter that no loss depends on (a bias in front of a batch norm) has the gradient 0, which comes out as rounding
# noise, and weights that start at 0 are as small as their steps: errors of such tensors are given as shares of this
# share of the largest entry of all tensors instead.
FLOOR = 1e-2


@dataclass(frozen=True)
class Comparison:
    """Relative errors by name: max |ours - reference| / max |reference|.

    The denominator is at least `FLOOR` times the maximum over all tensors of a kind.

    Attributes:
        gradient: of the first global batch.
        weights: after the last step.
        statistics: running statistics of batch norm after the last step.
    """

    gradient: dict[str, float]
    weights: dict[str, float]
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def gradient_error(self) -> float:
        """The largest of the gradient's errors; infinite if one is not a number."""
        return _largest(self.gradient)

    @property
    def weights_error(self) -> float:
        """The largest of the weights' errors; infinite if one is not a number."""
        return _largest(self.weights)

    @property
    def statistics_error(self) -> float:
        """The largest of the statistics' errors; infinite if one is not a number."""
        return _largest(self.statistics)


@dataclass(frozen=True)
class Bounds:
    """The largest errors of runs that count as the same, by name and in the unit of `Comparison`.

    Attributes:
        gradient: of the first global batch.
        weights: after the last step.
        statistics: running statistics of batch norm after the last step.
        undecided: parameters whose final weights rounding decides: their gradients alone are compared.
    """

    gradient: dict[str, float]
    weights: dict[str, float]
    statistics: dict[str, float] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()

    @classmethod
    def fixed(cls, tolerance: float, reference: Trajectory) -> Bounds:
        """One bound for everything: the user's own."""
        return cls(
            dict.fromkeys(reference.gradient, tolerance),
            dict.fromkeys(reference.weights, tolerance),
            dict.fromkeys(reference.statistics, tolerance),
        )

    def share(self, errors: Comparison) -> float:
        """The largest error as a share of its bound: above 1 it is another run."""
        return max((share for _, share in self._shares(errors)), default=0.0)

    def gradient_share(self, errors: Comparison) -> float:
        """The same for the gradient alone."""
        return max((share for kind, share in self._shares(errors) if kind == "gradient"), default=0.0)

    def _shares(self, errors: Comparison) -> Iterator[tuple[str, float]]:
        for kind in ("gradient", "weights", "statistics"):
            bounds = getattr(self, kind)
            for name, error in getattr(errors, kind).items():
                if kind != "weights" or name not in self.undecided:
                    yield kind, _share(error, bounds[name])


def compare(ours: Trajectory, reference: Trajectory) -> Comparison:
    """Errors of `ours`; both have the same parameters."""
    return Comparison(
        gradient=relative_errors(ours.gradient, reference.gradient),
        weights=relative_errors(ours.weights, reference.weights),
        statistics=relative_errors(ours.statistics, reference.statistics, floor=0.0),
    )


def relative_errors(
    ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, floor: float = FLOOR
) -> dict[str, float]:
    """See `Comparison`; `floor` is the smallest scale of a tensor as a share of the largest entry of all.

    >>> import torch
    >>> relative_errors({"w": torch.tensor([2.0, 4.1])}, {"w": torch.tensor([2.0, 4.0])})["w"].__round__(3)
    0.025
    """
    assert ours.keys() == reference.keys()
    differences = {name: wide(ours[name]) - wide(value) for name, value in reference.items()}
    return relative_sizes(differences, reference, floor=floor)


def relative_sizes(
    differences: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, floor: float = FLOOR
) -> dict[str, float]:
    """The same as `relative_errors`, from given differences."""
    sizes = {name: _size(value) for name, value in reference.items()}
    smallest = floor * max(sizes.values(), default=0.0)
    scales = {name: max(size, smallest) or 1.0 for name, size in sizes.items()}
    return {name: _size(difference) / scales[name] for name, difference in differences.items()}


def _size(value: Tensor) -> float:
    return float(value.detach().abs().double().max()) if value.numel() else 0.0


def wide(value: Tensor) -> Tensor:
    """The value in double precision, real or complex."""
    return value.to(torch.complex128) if value.is_complex() else value.double()


def _share(error: float, bound: float) -> float:
    if math.isnan(error):
        return math.inf
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else math.inf


def _largest(errors: Mapping[str, float]) -> float:
    return max((math.inf if math.isnan(error) else error for error in errors.values()), default=0.0)

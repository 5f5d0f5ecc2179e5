"""How far a factorization is from the reference, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from largebatch.verification.trajectories import Trajectory

# A parameter that no loss depends on (a bias in front of a batch norm) has the gradient 0, which comes out as rounding
# noise, and weights that start at 0 are as small as their steps: errors of such tensors are measured against this share
# of the largest entry of all tensors instead. Noise is then far below the tolerances in fp64 and in fp32.
FLOOR = 1e-2


@dataclass(frozen=True)
class Comparison:
    """Relative errors by parameter name: max |ours - reference| / max |reference|, the latter not below `FLOOR` times
    that of all tensors.

    Attributes:
        gradient: of the first global batch.
        weights: after the last step.
    """

    gradient: dict[str, float]
    weights: dict[str, float]

    @property
    def gradient_error(self) -> float:
        """The largest of the gradient's errors; infinite if one is not a number."""
        return _largest(self.gradient)

    @property
    def weights_error(self) -> float:
        """The largest of the weights' errors; infinite if one is not a number."""
        return _largest(self.weights)

    @property
    def error(self) -> float:
        """The largest of all errors: what a tolerance is held against."""
        return max(self.gradient_error, self.weights_error)


def compare(ours: Trajectory, reference: Trajectory) -> Comparison:
    """Errors of `ours`; both have the same parameters."""
    return Comparison(
        gradient=relative_errors(ours.gradient, reference.gradient),
        weights=relative_errors(ours.weights, reference.weights),
    )


def relative_errors(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """See `Comparison`.

    >>> import torch
    >>> relative_errors({"w": torch.tensor([2.0, 4.1])}, {"w": torch.tensor([2.0, 4.0])})["w"].__round__(3)
    0.025
    """
    assert ours.keys() == reference.keys()
    sizes = {name: float(value.double().abs().max()) for name, value in reference.items()}
    floor = FLOOR * max(sizes.values(), default=0.0)
    errors = {}
    for name, value in reference.items():
        difference = float((ours[name].double() - value.double()).abs().max())
        scale = max(sizes[name], floor)
        errors[name] = difference / scale if scale > 0 else difference
    return errors


def _largest(errors: Mapping[str, float]) -> float:
    return max((math.inf if math.isnan(error) else error for error in errors.values()), default=0.0)

"""A quadratic loss whose samples are gradient noise: the model of the noisy quadratic task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from largebatch.distributed.host_memory import require_memory
from largebatch.models.arguments import require_features


class Quadratic(nn.Module):
    """The loss 1/2 sum_i h_i theta_i^2 + e'theta for each noise vector e: [n, d] -> [n], for `OutputIsLoss`.

    Coordinate i of its gradient over a batch is h_i theta_i + mean(e_i). Its parameter theta [d] starts at `start`.

    Args:
        curvature: h, [d].
        start: theta_0, d numbers, or one for all coordinates.
        copies: consecutive coordinates per entry of `curvature`.

    Raises:
        ValueError: if a curvature is not positive, `copies` is below 1, or lengths do not fit.

    >>> model = Quadratic([1.0, 2.0], start=3.0)
    >>> model(torch.tensor([[0.0, 0.0], [1.0, -0.5]])).tolist()  # 1/2 (9 + 18), then + 3 - 1.5
    [13.5, 15.0]
    """

    def __init__(self, curvature: Sequence[float], *, start: float | Sequence[float] = 1.0, copies: int = 1) -> None:
        super().__init__()
        if copies < 1:
            raise ValueError(f"copies={copies}: every curvature needs at least one coordinate. Use 1 or more.")
        require_memory(f"{copies:,} copies of {len(curvature)} coordinates", 8 * copies * len(curvature))
        numbers = torch.tensor(list(curvature), dtype=torch.float64).repeat_interleave(copies)
        if len(numbers) == 0 or not bool(((numbers > 0) & numbers.isfinite()).all()):
            raise ValueError(f"curvature={list(curvature)}: give at least one number, all positive and finite.")
        theta = torch.tensor([start] if isinstance(start, (int, float)) else list(start), dtype=torch.float64)
        if len(theta) not in (1, len(numbers)):
            raise ValueError(f"start has {len(theta)} numbers, curvature {len(numbers)}: give {len(numbers)}, or 1.")
        self.curvature: Tensor
        # A constant of the config, so not persistent; in float64, so that fp64 runs match the closed forms.
        self.register_buffer("curvature", numbers, persistent=False)
        self.theta = nn.Parameter(theta.expand(len(numbers)).clone().to(torch.get_default_dtype()))

    def forward(self, noise: Tensor) -> Tensor:
        """Loss of each sample, [n], for `noise` [n, d]."""
        require_features("Quadratic", expected=len(self.theta), shape=noise.shape)
        # A product and a sum, because autocast would run a matrix product in half precision.
        linear = (noise.flatten(1).to(self.theta.dtype) * self.theta).sum(dim=1)
        return 0.5 * (self.curvature.to(self.theta.dtype) * self.theta.square()).sum() + linear

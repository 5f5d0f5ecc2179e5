"""Tasks with closed-form answers, see `largebatch.diagnostics.closed_forms`: no files, no download."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from largebatch.batch.random_keys import stream_key
from largebatch.data.array import ArrayDataset
from largebatch.data.errors import Split, check_split
from largebatch.data.synthetic import keyed_normals
from largebatch.distributed.host_memory import require_memory


def linear_regression(
    num_samples: int,
    num_features: int,
    split: Split,
    *,
    noise: float = 0.1,
    seed: int = 0,
) -> ArrayDataset:
    """Inputs x [N, d] and targets y = x'w + b + noise e [N], float32; x, w, b and e are standard normal.

    Both splits share w and b. Sample i does not depend on `num_samples`. With `largebatch.models.Linear(d, 1)` and
    `SquaredError`, `LeastSquares(data.inputs, data.targets)` gives the minimiser, the Hessian, the gradient noise and
    the path of gradient descent in float64. They refer to the data as rounded to float32.

    Raises:
        ValueError: if a count is too small, there are no more samples than features (many weights then fit equally
            well), or `noise` is negative.
    """
    check_split(split)
    if num_features < 1 or num_samples <= num_features:
        raise ValueError(
            f"num_samples={num_samples}, num_features={num_features}: a unique minimiser needs at least 1 feature and "
            f"more samples than features. Use at least {max(num_features, 1) + 1} samples."
        )
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise={noise}: a standard deviation must be 0 or more.")
    teacher = keyed_normals(stream_key(seed, "linear_regression", "teacher"), 1, num_features + 1)[0]
    draws = keyed_normals(stream_key(seed, "linear_regression", split), num_samples, num_features + 1)
    inputs = draws[:, :-1]
    targets = inputs @ teacher[:-1] + teacher[-1] + noise * draws[:, -1]
    return ArrayDataset(*(torch.from_numpy(part).to(torch.float32) for part in (inputs, targets)))


def noisy_quadratic(
    num_samples: int,
    noise_variance: Sequence[float],
    split: Split,
    *,
    copies: int = 1,
    seed: int = 0,
) -> ArrayDataset:
    """Noise vectors e [N, d], float64, for `largebatch.models.Quadratic` and `OutputIsLoss`; targets are zeros [N].

    Over the data set the mean of e is exactly 0 and its (population) covariance exactly diag(c), up to float64: normal
    draws are centred and orthogonalised. So the noise of a mini-batch is exactly that of `NoisyQuadratic(curvature,
    c)`. In return a sample depends on `num_samples`, and a part of the data set (`data.limit`) has other moments.

    Args:
        num_samples: N, more than d.
        noise_variance: c, [d]; variance of the sample gradients in each coordinate.
        split: train or validation, drawn independently; the mean loss over either is the noise-free loss.
        copies: consecutive coordinates per entry of `noise_variance`.
        seed: seed of the draws.

    Raises:
        ValueError: if N is not above d, a variance is negative, or `copies` is below 1.
    """
    check_split(split)
    if copies < 1:
        raise ValueError(f"copies={copies}: every variance needs at least one coordinate. Use 1 or more.")
    require_memory(f"{copies:,} copies of {np.size(noise_variance)} coordinates", 8 * copies * np.size(noise_variance))
    variances = np.repeat(np.asarray(noise_variance, dtype=np.float64), copies, axis=0)
    if variances.ndim != 1 or len(variances) == 0 or not ((variances >= 0) & np.isfinite(variances)).all():
        raise ValueError(f"noise_variance={noise_variance}: give at least one number, each 0 or more.")
    if num_samples <= len(variances):
        raise ValueError(
            f"num_samples={num_samples}: noise with mean 0, uncorrelated in {len(variances)} coordinates, needs more "
            f"samples. Use at least {len(variances) + 1} samples."
        )
    shape, key = (num_samples, len(variances)), stream_key(seed, "noisy_quadratic", split)
    white = (_kept_white_noise if 8 * math.prod(shape) <= _KEPT_BYTES else _white_noise)(key, *shape)
    return ArrayDataset(torch.from_numpy(white * np.sqrt(variances)), torch.zeros(num_samples))


def _white_noise(key: int, num_samples: int, num_columns: int) -> npt.NDArray[np.float64]:
    """[N, d] of mean 0 and covariance 1, both exactly."""
    draws = keyed_normals(key, num_samples, num_columns)
    orthonormal, triangle = np.linalg.qr(draws - draws.mean(axis=0))
    # The signs of a QR decomposition depend on the library: fix them by the draws.
    return np.asarray(orthonormal * np.sign(np.diag(triangle)) * np.sqrt(num_samples))


# Cached, because a study creates both splits for each of its runs, which took longer than a short run.
_KEPT_BYTES = 1 << 25
_kept_white_noise = functools.lru_cache(maxsize=2)(_white_noise)

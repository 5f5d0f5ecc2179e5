"""Tasks whose every answer is known, see `largebatch.diagnostics.closed_forms`: no files, no download."""

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

    Both splits share w and b. Sample i is the same whatever `num_samples` is. With `largebatch.models.Linear(d, 1)` and
    `SquaredError`, `LeastSquares(data.inputs, data.targets)` knows the minimiser, the Hessian, the gradient noise and
    the path of gradient descent: of the set as it is, in float64, not of the numbers before they were rounded.

    Raises:
        ValueError: if a count is too small, there are no more samples than features (many weights then fit equally
            well), or `noise` is negative.
    """
    check_split(split)
    if num_features < 1 or num_samples <= num_features:
        raise ValueError(
            f"num_samples={num_samples}, num_features={num_features}: at least 1 feature, and more samples than "
            f"features, or many weights fit equally well. Use at least {max(num_features, 1) + 1} samples."
        )
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise={noise}: a standard deviation is 0 or more.")
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

    Over the set the mean of e is exactly 0 and its (population) covariance exactly diag(c), up to float64: normal
    draws are centred and made orthogonal. So the noise of a mini-batch is known, not only expected, with the numbers
    of `NoisyQuadratic(curvature, c)`. For that a sample depends on `num_samples`, and a part of the set (`data.limit`)
    has other moments.

    Args:
        num_samples: N, more than d.
        noise_variance: c, [d]; how much the gradients of samples vary in each coordinate.
        split: train or validation, of independent draws; the mean loss over either is that without noise.
        copies: coordinates for every entry of `noise_variance`, one after the other.
        seed: of the draws.

    Raises:
        ValueError: if N is not above d, a variance is negative, or there is less than one copy.
    """
    check_split(split)
    if copies < 1:
        raise ValueError(f"copies={copies}: every variance is that of at least one coordinate.")
    require_memory(f"{copies:,} copies of {np.size(noise_variance)} coordinates", 8 * copies * np.size(noise_variance))
    variances = np.repeat(np.asarray(noise_variance, dtype=np.float64), copies, axis=0)
    if variances.ndim != 1 or len(variances) == 0 or not ((variances >= 0) & np.isfinite(variances)).all():
        raise ValueError(f"noise_variance={noise_variance}: a list of at least one number, each 0 or more.")
    if num_samples <= len(variances):
        raise ValueError(
            f"num_samples={num_samples}: noise of mean 0 that is uncorrelated in {len(variances)} coordinates needs at "
            f"least {len(variances) + 1} samples."
        )
    shape, key = (num_samples, len(variances)), stream_key(seed, "noisy_quadratic", split)
    white = (_kept_white_noise if 8 * math.prod(shape) <= _KEPT_BYTES else _white_noise)(key, *shape)
    return ArrayDataset(torch.from_numpy(white * np.sqrt(variances)), torch.zeros(num_samples))


def _white_noise(key: int, num_samples: int, num_columns: int) -> npt.NDArray[np.float64]:
    """[N, d] of mean 0 and covariance 1, both exactly."""
    draws = keyed_normals(key, num_samples, num_columns)
    orthonormal, triangle = np.linalg.qr(draws - draws.mean(axis=0))
    # The signs of a QR decomposition are the library's choice; these are those of the draws.
    return np.asarray(orthonormal * np.sign(np.diag(triangle)) * np.sqrt(num_samples))


# A study makes the two sets anew for each of its runs, and that took longer than a short run.
_KEPT_BYTES = 1 << 25
_kept_white_noise = functools.lru_cache(maxsize=2)(_white_noise)

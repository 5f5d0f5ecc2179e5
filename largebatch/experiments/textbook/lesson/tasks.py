"""The tasks of the widgets: numbers that the page's script computes with."""

from __future__ import annotations

from typing import Any

from largebatch.diagnostics.closed_forms import LeastSquares

STEPS = 60
BATCH_SIZES = sorted({round(2 ** (quarter / 4)) for quarter in range(49)})  # a quarter of an octave apart
DESCENT: dict[str, Any] = {
    "curvature": [1.0, 10.0],
    "noise_variance": [20.0, 20.0],
    "start": [-8.5, 6.0],
    "steps": STEPS,
    "seed": 3,
}
RATES: dict[str, Any] = {"curvature": [0.4, 4.0], "start": [-1.2, 1.2], "steps": STEPS}
SIZES: dict[str, Any] = {"fewest_steps": 1000, "base_batch": 32, "sizes": BATCH_SIZES, "tolerance": 0.25}
_EPOCHS = 50
# Of conf/experiment/textbook/gd_variants.yaml.
_RATES = {"batch": 0.1, "mini": 0.05, "stochastic": 0.01}


def epochs_task() -> dict[str, Any]:
    """The training set of `largebatch textbook gd_variants`, as the noisy quadratic around its minimum.

    Returns:
        curvature and noise along the eigenvectors, and the start of all runs, zero weights; `divisors` are the batch
        sizes that fill an epoch, which the closed form of an epoch needs.
    """
    from largebatch.data import linear_regression

    data = linear_regression(1000, 10, "train", noise=0.1)
    task = LeastSquares(data.inputs.double().numpy(), data.targets.double().numpy())
    model, count = task.near_minimiser(), len(task.design)
    return {
        "curvature": model.curvature.tolist(),
        "noise_variance": model.noise_variance.tolist(),
        "start": task.along_eigenvectors([0.0] * len(model.curvature)).tolist(),
        "num_samples": count,
        "epochs": _EPOCHS,
        "rates": _RATES,
        "divisors": [size for size in range(2, count) if count % size == 0],
    }

"""The path of the weights during training, for figures of small models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport

Float64Array = npt.NDArray[np.float64]


class WeightPath(Observer):
    """Observer that keeps all weights after every step: for models of a few parameters.

    Attributes are arrays over the points of the path, the start included.
    """

    def __init__(self) -> None:
        self._weights: list[torch.Tensor] = []
        self._places: list[tuple[int, int, float]] = []

    def on_start(self, run: Run) -> None:
        """The first point."""
        self._keep(run)

    def after_step(self, run: Run, report: StepReport) -> None:
        """One more point."""
        self._keep(run)

    @property
    def weights(self) -> Float64Array:
        """All parameters one after the other, in the order of the module, [points, p]."""
        return torch.stack(self._weights).numpy()

    @property
    def steps(self) -> Float64Array:
        """Optimizer steps done, [points]."""
        return np.array([step for step, _, _ in self._places], dtype=float)

    @property
    def samples(self) -> Float64Array:
        """Samples seen, [points]."""
        return np.array([samples for _, samples, _ in self._places], dtype=float)

    @property
    def seconds(self) -> Float64Array:
        """Time spent in steps, observers left out, [points]."""
        return np.array([seconds for _, _, seconds in self._places], dtype=float)

    def _keep(self, run: Run) -> None:
        parts = [parameter.detach().reshape(-1) for parameter in run.module.parameters()]
        self._weights.append(torch.cat(parts).to("cpu", torch.float64, copy=True))
        progress = run.progress
        self._places.append((progress.step, progress.samples_seen, progress.train_s))


def thinned(count: int, most: int = 150, *, evenly: bool = False) -> npt.NDArray[np.int64]:
    """Places among `count` points for a figure: the first and the last, dense at the beginning unless `evenly`.

    >>> thinned(1001, most=5).tolist(), thinned(1001, most=5, evenly=True).tolist(), thinned(3).tolist()
    ([0, 1, 10, 100, 1000], [0, 250, 500, 750, 1000], [0, 1, 2])
    """
    if count <= most:
        return np.arange(count)
    if evenly:
        return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
    spaced = np.geomspace(1, count - 1, most - 1).round().astype(np.int64)
    return np.unique(np.concatenate([[0], spaced]))

"""Simulated studies: how often the verdict is `supported`, over the evidence and over planted misfit.

    python -m tests.unit.diagnostics.simulated_studies 200

prints the table in largebatch/diagnostics/critical_batch/misfit.py from so many draws of each row (3 minutes on one
core for 200).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from largebatch.diagnostics.critical_batch.critical_batch import fit_critical_batch
from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget

S_MIN, B_CRIT, SMALLEST, LARGEST = 200.0, 100.0, 8, 1024
Truth = Callable[[np.ndarray], np.ndarray]


def hyperbola(sizes: np.ndarray) -> np.ndarray:
    return S_MIN * (1 + B_CRIT / sizes)


def shifted(share: float) -> Truth:
    """The optimum of what was tuned once moves: above batch 128 every run takes so much longer."""
    return lambda sizes: hyperbola(sizes) * np.where(sizes > 128, 1 + share, 1.0)


def one_bad(share: float) -> Truth:
    """One batch size in the middle takes so much longer."""
    return lambda sizes: hyperbola(sizes) * np.where(np.arange(len(sizes)) == len(sizes) // 2, 1 + share, 1.0)


MISFITS: dict[str, Truth] = {
    "none": hyperbola,
    "no gain beyond batch 64": lambda sizes: hyperbola(np.minimum(sizes, 64.0)),
    "no loss below batch 24": lambda sizes: hyperbola(np.maximum(sizes, 24.0)),
    "S ~ B^-0.5": lambda sizes: 2000 * sizes**-0.5,
    "steps rise again": lambda sizes: hyperbola(sizes) * (1 + (sizes / 700) ** 2),
    "optimum shifts, +30 % above 128": shifted(0.3),
    "optimum shifts, +100 % above 128": shifted(1.0),
    "one batch size +50 %": one_bad(0.5),
}


def simulated(
    rng: np.random.Generator, truth: Truth, *, num_sizes: int, seeds: int, tuning: float = 0.05, noise: float = 0.1
) -> list[StepsToTarget]:
    """Batch sizes 8 to 1024 evenly in the logarithm; `tuning` scatters batch sizes as a whole, `noise` their seeds."""
    sizes = np.unique(np.geomspace(SMALLEST, LARGEST, num_sizes).round())
    scatter = tuning * rng.normal(size=(len(sizes), 1)) + noise * rng.normal(size=(len(sizes), seeds))
    steps = truth(sizes)[:, None] * np.exp(scatter)
    return [StepsToTarget(int(size), tuple(row)) for size, row in zip(sizes, steps.tolist(), strict=True)]


def share_supported(truth: Truth, *, draws: int, num_sizes: int, seeds: int, tuning: float = 0.05) -> float:
    rng = np.random.default_rng(15)
    found = [
        fit_critical_batch(simulated(rng, truth, num_sizes=num_sizes, seeds=seeds, tuning=tuning)).supported
        for _ in range(draws)
    ]
    return float(np.mean(found))


def _table(draws: int, num_sizes: Sequence[int] = (4, 5, 8, 13), seeds: Sequence[int] = (1, 3, 20)) -> None:
    print(f"supported, per cent of {draws}; columns: {num_sizes} batch sizes, each with {seeds} seeds")
    rows = [(name, truth, 0.05) for name, truth in MISFITS.items()] + [("none, tuning scatter 10 %", hyperbola, 0.1)]
    for name, truth, tuning in rows:
        cells = [
            share_supported(truth, draws=draws, num_sizes=count, seeds=number, tuning=tuning)
            for count in num_sizes
            for number in seeds
        ]
        print(f"{name:34}", *(f"{100 * cell:4.0f}" for cell in cells), flush=True)


if __name__ == "__main__":
    _table(int(sys.argv[1]) if len(sys.argv) > 1 else 200)

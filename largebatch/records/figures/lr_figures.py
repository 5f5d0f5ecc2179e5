"""Figures of learning-rate range tests, as descriptions to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail

_ABOVE_START = 1.5  # times what the loss was: a loss that diverges goes on to any height

RATE = Axis("learning rate", log=True)


class Curve(Protocol):
    """A range test."""

    @property
    def smoothed(self) -> np.ndarray:
        """Losses, [n]."""

    @property
    def smoothed_rates(self) -> np.ndarray:
        """That they belong to, [n], ascending."""


def range_diagram(curves: Mapping[int, Curve], marks: Mapping[str, float], *, title: str, caption: str) -> Diagram:
    """Smoothed loss over the rate, one line per seed, and dashed lines across at the rates in `marks`, by name.

    Args:
        curves: by seed.
        marks: name -> rate.
        title: what was tested.
        caption: how to read it.
    """
    heights = {seed: _cut(curve.smoothed) for seed, curve in curves.items()}
    lines = [Line(f"seed {seed}", list(curves[seed].smoothed_rates), list(y)) for seed, y in heights.items()]
    drawn = np.concatenate(list(heights.values()))
    drawn = drawn[np.isfinite(drawn)]
    ends = [float(drawn.min()), float(drawn.max())] if len(drawn) else [0.0, 1.0]
    lines += [Line(f"{name} {rate:.3g}", [rate, rate], ends, style="dashed") for name, rate in marks.items()]
    return Diagram("find_lr", title, RATE, Axis("loss, smoothed"), tuple(lines), caption)


def range_map(
    curves: Mapping[int, Sequence[Curve]], rates: Sequence[float], suggested: Mapping[int, float], *, title: str
) -> Surface:
    """Mean smoothed loss of the seeds over rate and batch size, and the suggested rates as a trail.

    Args:
        curves: by batch size.
        rates: columns of the map.
        suggested: batch size -> rate, where there is one.
        title: what was tested.
    """
    sizes = sorted(curves)
    values = [list(np.mean([_at(curve, rates) for curve in curves[size]], axis=0)) for size in sizes]
    found = [size for size in sizes if size in suggested]
    trail = Trail("suggestion", [suggested[size] for size in found], found)
    return Surface(
        "lr_map", title, RATE, Axis("batch size", "samples", log=True), Axis("loss, smoothed"), list(rates), sizes,
        values,
        trails=(trail,) if found else (),
        caption="Empty cells: the loss of a seed is far above its start, or its test has ended.",
    )  # fmt: skip


def _cut(smoothed: np.ndarray) -> np.ndarray:
    """NaN where the loss is far above its start."""
    start = float(smoothed[0])
    high = start + (_ABOVE_START - 1) * abs(start) if math.isfinite(start) else math.inf
    return np.where(smoothed <= high, smoothed, np.nan)


def _at(curve: Curve, rates: Sequence[float]) -> np.ndarray:
    """Smoothed losses at the given rates; NaN beyond the last one that the curve has."""
    return np.interp(np.log(rates), np.log(curve.smoothed_rates), _cut(curve.smoothed), right=math.nan)

"""Paths over the contours of a quadratic loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from largebatch.experiments.textbook.weight_path import Float64Array, thinned
from largebatch.records.figures.diagram import Axis, Surface, Trail

_CELLS = 60  # an even number: at the minimum itself the loss has no logarithm


def landscape(
    curvature: tuple[float, float], paths: Mapping[str, Float64Array], *, name: str, title: str, caption: str = ""
) -> Surface:
    """The loss 1/2 (h_1 a^2 + h_2 b^2) over its coordinates a and b, with paths over it.

    Args:
        curvature: h_1, h_2, along which a and b are measured from the minimiser.
        paths: label -> points (a, b), [n, 2]; points that are not finite are left out.
        name: of the figure.
        title: of the figure.
        caption: how to read it.
    """
    finite = {label: path[np.isfinite(path).all(axis=1)] for label, path in paths.items()}
    # The same along both coordinates, as both are weights: an ellipse is one, and no circle looks like it.
    reach = 1.1 * max(float(np.abs(path).max()) for path in finite.values())
    columns = rows = np.linspace(-reach, reach, _CELLS)
    values = 0.5 * (curvature[0] * columns[None, :] ** 2 + curvature[1] * rows[:, None] ** 2)
    trails = [Trail(label, *path[thinned(len(path), 200)].T.tolist()) for label, path in finite.items()]
    axes = [Axis(f"along h = {one:.3g}") for one in curvature]
    return Surface(
        name=name,
        title=title,
        x=axes[0],
        y=axes[1],
        z=Axis("loss above the least one", log=True),
        columns=columns.tolist(),
        rows=rows.tolist(),
        values=values.tolist(),
        trails=tuple(trails),
        contours=True,
        caption=caption,
        square=True,
    )

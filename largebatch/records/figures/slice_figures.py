"""Cuts through a loss, around the weights."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail, is_wide, numbers

if TYPE_CHECKING:
    from largebatch.diagnostics.sharpness.measurement import Slices

_HERE = "the weights"


def slice_figures(slices: Slices, *, unit: str) -> list[Diagram | Surface]:
    """The loss along one direction and over a plane, where it is finite; a plane of one point is left out.

    Args:
        slices: the measured losses.
        unit: the loss is a mean per this unit, such as a sample.
    """
    line, plane = numbers(slices.line), [numbers(row) for row in slices.plane]
    figures: list[Diagram | Surface] = []
    if known := [loss for loss in line if loss is not None]:
        here = Line(_HERE, [0, 0], [min(known), max(known)], style="dashed")
        figures.append(
            Diagram(
                "slice_1d",
                "Loss along a filter-normalised direction",
                Axis("distance along a random direction", "1: as long as the filter"),
                Axis("loss", f"mean per {unit}", log=is_wide(known)),
                (Line("loss", slices.line_positions, line, style="both"), here),
            )
        )
    places, over = slices.plane_positions, list(itertools.chain.from_iterable(plane))
    if len(places) > 1 and any(loss is not None for loss in over):
        figures.append(
            Surface(
                "slice_2d",
                "Loss over two random filter-normalised directions",
                Axis("distance along the first direction", "1: as long as the filter"),
                Axis("distance along the second direction"),
                Axis("loss", f"mean per {unit}", log=is_wide(over)),
                places,
                places,
                plane,
                trails=(Trail(_HERE, [0.0], [0.0]),),
                contours=True,
                square=True,
            )
        )
    return figures

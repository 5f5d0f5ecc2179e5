"""How precisely sharpness is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section


class SharpnessSettings(Section):
    """The numbers that a run may measure while it trains.

    Attributes:
        m: samples that share one ascent step in the m-sharpness.
        rho: length of the ascent step.
        lanczos_iterations: Hessian-vector products for the eigenvalue at most; as many vectors are kept in memory.
        lanczos_tolerance: relative to the largest |eigenvalue|.
        trace_samples: Hessian-vector products for the trace.
    """

    m: PositiveInt
    rho: PositiveFloat
    lanczos_iterations: PositiveInt
    lanczos_tolerance: PositiveFloat
    trace_samples: Annotated[int, Field(ge=2)]  # a single draw has no error bar


class LandscapeSettings(Section):
    """What costs more: Keskar's box, and slices through the loss.

    Attributes:
        box_eps: half width of the box, relative to |w| + 1.
        box_iterations: of L-BFGS-B; 0: no box.
        slice_radius: slices reach from -radius to radius, in filter norms.
        line_points, plane_points: positions of a slice along an axis; 0: no such slice.
    """

    box_eps: PositiveFloat
    box_iterations: Annotated[int, Field(ge=0)]
    slice_radius: PositiveFloat
    line_points: Annotated[int, Field(ge=0)]
    plane_points: Annotated[int, Field(ge=0)]

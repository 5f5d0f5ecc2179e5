"""Settings of the sharpness measures."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section


class SharpnessSettings(Section):
    """Settings of the measures that a run can take while it trains.

    Attributes:
        m: samples that share one ascent step in the m-sharpness.
        rho: length of the ascent step.
        lanczos_iterations: most Hessian-vector products for the eigenvalue; memory holds as many vectors.
        lanczos_tolerance: residual that ends the iteration, relative to the largest |eigenvalue|.
        trace_samples: Hessian-vector products for the trace.
    """

    m: PositiveInt = 32
    rho: PositiveFloat = 0.05
    lanczos_iterations: PositiveInt = 30
    lanczos_tolerance: PositiveFloat = 1e-3
    trace_samples: Annotated[int, Field(ge=2)] = 8  # a single draw has no error bar


class LandscapeSettings(Section):
    """Settings of the more expensive measures: Keskar's box, and slices through the loss.

    Attributes:
        box_eps: half width of the box, relative to |w| + 1.
        box_iterations: iterations of L-BFGS-B; 0: no box.
        slice_radius: slices extend from -radius to radius, in filter norms.
        line_points, plane_points: positions of a slice along an axis; 0: no slice.
    """

    box_eps: PositiveFloat = 1e-3
    box_iterations: Annotated[int, Field(ge=0)] = 10
    slice_radius: PositiveFloat = 1.0
    line_points: Annotated[int, Field(ge=0)] = 41
    plane_points: Annotated[int, Field(ge=0)] = 15

"""Schema of the section `data.augment`; its defaults change nothing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from largebatch.diagnostics.settings import Section

Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AugmentConfig(Section):
    """Random changes of training images."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    mix_probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix_switch: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed in pairs."""
        return bool(self.mixup or self.cutmix)

"""Schema of the section `data.augment`; its defaults change nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from largebatch.diagnostics.settings import Section
from largebatch.run.config.types import Target

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Alpha = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CropConfig(Section):
    """Random boxes of whole images."""

    scale: Range = Field(default_factory=lambda: [0.08, 1.0])
    ratio: Range = Field(default_factory=lambda: [3 / 4, 4 / 3])


class AugmentConfig(Section):
    """Random changes of training images."""

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    mix_probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix_switch: Annotated[float, Field(ge=0, le=1)] = 0.5
    random_resized_crop: CropConfig | None = None
    transform: Target | None = None
    transform_takes: Literal["tensor", "float", "pil"] = "tensor"
    views: Annotated[int, Field(ge=1)] = 1

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed in pairs."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes_items(self) -> bool:
        """Whether samples are changed one by one, as they are loaded."""
        return self.random_resized_crop is not None or self.transform is not None

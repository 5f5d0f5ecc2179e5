"""Random resized crops: a random box of the whole image, resized to the size of the model's inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from largebatch.data.array import ImageNormalisation
from largebatch.data.decoding import require_pillow
from largebatch.data.folder import ImageFiles
from largebatch.data.stored import stored_form
from largebatch.data.transforms import TransformedSamples, as_pil, from_pil

_ATTEMPTS = 10


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of a random share of the area and a random ratio of width to height, anywhere in the image.

    The share is uniform on `scale`, the logarithm of the ratio uniform on that of `ratio`. A box that does not fit is
    drawn anew; after 10 of them it is the largest one in the middle whose ratio is allowed. Draws are those of torch's
    global generator, which a loader seeds for every sample. Source: Szegedy et al. 2015, "Going deeper with
    convolutions", section 6; fall-back and rounding as in torchvision's RandomResizedCrop.

    Attributes:
        scale: smallest and largest share of the area, in (0, 1].
        ratio: smallest and largest width divided by height.

    Raises:
        ValueError: if a range is empty or outside what an image has.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={list(self.scale)}: give the smallest and largest share of the area, in (0, 1].")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio={list(self.ratio)}: give the smallest and largest width / height, above 0.")

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a box in an image, in pixels."""
        low, high = (math.log(one) for one in self.ratio)
        for share, shape, across, down in torch.rand(_ATTEMPTS, 4, dtype=torch.float64).tolist():
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
            ratio = math.exp(low + (high - low) * shape)
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
                return left, top, left + wide, top + tall
        wide = min(width, round(height * self.ratio[1]))
        tall = min(height, round(width / self.ratio[0]))
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall

    def __call__(self, pixels: Tensor) -> Tensor:
        """A crop of uint8 [C, H, W], resized to H and W by Pillow (bilinear, antialiased)."""
        image, pil = as_pil(pixels), require_pillow()
        cropped = image.crop(self.box(*image.size)).resize(image.size, pil.Resampling.BILINEAR)
        made: Tensor = from_pil(cropped, num_channels=len(pixels))
        return made


def with_random_crops(dataset: Any, crop: RandomResizedCrop) -> Any:
    """The images of `dataset` as random crops: of the whole files, where it has such; else of the stored images.

    Raises:
        ValueError: if it holds no images as bytes.
    """
    files = dataset if isinstance(dataset, ImageFiles) else getattr(dataset, "files", None)
    if isinstance(files, ImageFiles):
        return files.cropped_by(crop)
    if not isinstance(stored_form(dataset)[1], ImageNormalisation):
        raise ValueError(
            f"data.augment.random_resized_crop: {type(dataset).__name__} holds no images as bytes. Crop in the data "
            "set itself, or set it to null."
        )
    return TransformedSamples(dataset, crop)

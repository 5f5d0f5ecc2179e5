"""Transforms as people write them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Jitter:
    """Flips, shifts and adds noise; draws from all three generators."""

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        if random.random() < 0.5:
            image = image.flip(-1)
        image = image.roll(int(np.random.randint(3)), dims=0)  # noqa: NPY002
        if image.dtype == torch.uint8:
            return image ^ torch.randint(0, 4, image.shape, dtype=torch.uint8)
        return image + self.strength * torch.randn(image.shape, dtype=image.dtype)


class OwnGenerator:
    """Draws from a generator that nobody seeds for a sample."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, image: Tensor) -> Tensor:
        return image + torch.rand(image.shape, generator=self.generator)


def rotated(image: Any) -> Any:
    """Of Pillow images: by a quarter turn or none."""
    return image.rotate(90 * random.randrange(4))

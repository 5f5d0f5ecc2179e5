"""Random transforms of a library, or of the user's own, applied to each sample as it is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.decoding import require_pillow
from largebatch.data.errors import DataError
from largebatch.data.samples import TARGET_KEYS, as_sample
from largebatch.data.stored import stored_form
from largebatch.data.subset import OneByOne

Takes = Literal["tensor", "float", "pil"]

_IMAGE_DIMS = 3


class TransformedSamples(Dataset[Any]):
    """`dataset`, each sample of which goes through `transform` when it is loaded; one by one, also of a set in memory.

    A loader seeds the global generators of torch, numpy and Python by (seed, epoch, sample id) before each sample, so a
    transform that draws from these gives the same image on any rank and in any worker. Images that are stored as bytes
    are transformed as bytes and normalised afterwards; a result in float32 is rounded to bytes.

    Args:
        dataset: with inputs that are tensors, or dicts with exactly one image [C, H, W].
        transform: input -> input of the same kind, shape and type.
        takes: what it gets: "tensor": the tensor as it is stored, uint8 [C, H, W] of image sets; "float": float32
            [C, H, W], pixels divided by 255; "pil": an image of Pillow. The last two need images stored as bytes.

    Raises:
        DataError: from a sample, if the transform fails, or returns something else than it took.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], *, takes: Takes = "tensor") -> None:
        self._dataset, self._transform, self._takes = dataset, transform, takes
        stored, self._complete = stored_form(dataset)
        self._stored = OneByOne(stored) if hasattr(stored, "fetch") else stored
        self._is_stored_form = False

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest label; None if they are not known."""
        return getattr(self._dataset, "label_range", None)

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored = copy.copy(self)
        stored._is_stored_form = True
        return stored, self._complete

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return with_input(as_sample(self._stored[index]), self._changed)

    def _changed(self, stored: Tensor) -> Tensor:
        given = self._given(stored)
        try:
            returned = self._transform(given)
        except Exception as error:
            raise DataError(
                f"data.augment.transform failed on {_described(given)}: {type(error).__name__}: {error}"
            ) from error
        pixels = self._pixels(returned, stored)
        if self._is_stored_form or self._complete is None:
            return pixels
        return self._complete(pixels[None])[0]

    def _given(self, stored: Tensor) -> Any:
        if self._takes == "tensor":
            return stored.clone()  # of a set in memory it is the set's own
        if stored.dtype != torch.uint8 or stored.dim() != _IMAGE_DIMS:
            raise DataError(
                f"data.augment.transform_takes={self._takes}: needs images that are stored as bytes [C, H, W], and "
                f"this input is {_described(stored)}. Use transform_takes=tensor."
            )
        return stored.to(torch.float32) / 255 if self._takes == "float" else as_pil(stored)

    def _pixels(self, returned: Any, stored: Tensor) -> Tensor:
        wanted = {"pil": torch.uint8, "float": torch.float32, "tensor": stored.dtype}[self._takes]
        if self._takes == "pil" and not isinstance(returned, Tensor):
            returned = from_pil(returned, num_channels=len(stored))
        if not isinstance(returned, Tensor) or returned.dtype != wanted or returned.shape != stored.shape:
            raise DataError(
                f"data.augment.transform made {_described(returned)} of {_described(self._given(stored))}: it must "
                "keep kind, shape and type. Normalise by the data set's mean and std, which comes afterwards; "
                "transform_takes says what it gets (tensor, float, pil)."
            )
        # As many steps as a byte has: the way to the device and the normalisation are those of other images.
        return (returned.clamp(0, 1) * 255).round().to(torch.uint8) if self._takes == "float" else returned


def as_pil(pixels: Tensor) -> Any:
    """The image of Pillow that shows uint8 [C, H, W], C of 1 or 3."""
    array = pixels.numpy()
    return require_pillow().fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def from_pil(image: Any, *, num_channels: int) -> Any:
    """uint8 [C, H, W] of an image of Pillow of the mode that `as_pil` makes; anything else is returned as it is."""
    if getattr(image, "mode", None) != ("L" if num_channels == 1 else "RGB"):
        return image
    array = np.asarray(image)
    return torch.from_numpy((array[None] if num_channels == 1 else array.transpose(2, 0, 1)).copy())


def with_input(sample: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A sample with a changed input: the tensor of a pair, or the one image [C, H, W] of a dict.

    Raises:
        DataError: if there is none, or several.
    """
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        inputs, target = sample
        return (change(inputs) if isinstance(inputs, Tensor) else with_input(inputs, change)), target
    images = (
        [name for name, one in sample.items() if isinstance(one, Tensor) and one.dim() == _IMAGE_DIMS]
        if isinstance(sample, Mapping)
        else []
    )
    images = [name for name in images if name not in TARGET_KEYS]
    if len(images) != 1:
        raise DataError(
            f"is {type(sample).__name__} with {len(images)} images [C, H, W] among its inputs: random changes of "
            "data.augment need one tensor, or one image. Leave them out, or make them in the data set."
        )
    return {**sample, images[0]: change(sample[images[0]])}


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    size = f" {value.mode} {value.size[0]} x {value.size[1]}" if hasattr(value, "mode") else ""
    return f"{type(value).__name__}{size}"

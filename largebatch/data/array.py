"""Data sets in memory: a whole batch is one indexing operation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.errors import DataError, check_labels

Int64Array = npt.NDArray[np.int64]


class ImageNormalisation:
    """uint8 pixels to float32: `(pixel / 255 - mean) / std` for every channel.

    Args:
        mean: mean of each channel over the training set, pixels divided by 255.
        std: standard deviation of each channel, pixels divided by 255.

    Raises:
        ValueError: if the lengths differ, or the numbers are not on the scale of pixels divided by 255.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise ValueError(
                f"mean={list(mean)}, std={list(std)}: give one number per channel, 1 (grey) or 3 (RGB), in both."
            )
        if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
            raise ValueError(
                f"mean={list(mean)}, std={list(std)}: both refer to pixels divided by 255, so a mean lies in [0, 1] "
                f"and a std in (0, 1]. Divide them by 255 if they were computed over 0..255."
            )
        self.num_channels = len(mean)
        scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32).view(-1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float32).view(-1, 1, 1)
        self._constants = {scale.device: (scale, shift)}  # by device: a copy to a GPU makes the host wait

    def __call__(self, pixels: Tensor) -> Tensor:
        """Float32 images of the shape of `pixels`, uint8 [..., C, H, W], on their device.

        A product and a sum, each rounded: every device that follows IEEE 754 gives the same bits.
        """
        device = pixels.device
        if device not in self._constants:
            (scale, shift), *_ = self._constants.values()
            self._constants[device] = scale.to(device), shift.to(device)
        scale, shift = self._constants[device]
        return pixels.to(torch.float32).mul_(scale).add_(shift)


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and targets held in memory, fetched a whole micro-batch at a time.

    Args:
        inputs: [N, ...]. uint8 tensors are images [N, C, H, W], stored as they are and normalised when fetched;
            any other type is returned unchanged.
        targets: [N] or [N, ...].
        mean: for uint8 images, see `ImageNormalisation`; without it pixels are divided by 255 alone.
        std: likewise.
        num_classes: if given, integer `targets` must lie in [0, num_classes).
        bad: the reason for each unusable sample, by id; fetching one raises DataError.
        plan_notes: notes that the plan prints before training.

    Attributes:
        files: the same images as files, where they were larger before they were decoded; else None.

    Raises:
        ValueError: if lengths differ, the set is empty, or `mean` and `std` would have no effect.
        DataError: if a label lies outside the range; from `fetch`, for a sample in `bad`.

    >>> data = ArrayDataset(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([5, 6, 7]))
    >>> data.fetch(np.array([2, 0]))
    (tensor([[2.],
            [0.]]), tensor([7, 5]))
    """

    files: Any = None

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_classes: int | None = None,
        bad: Mapping[int, str] | None = None,
        plan_notes: Sequence[str] = (),
    ) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise ValueError(
                f"{len(inputs)} inputs and {len(targets)} targets: a data set needs equally many, and at least one."
            )
        if num_classes is not None:
            smallest, largest = int(targets.min()), int(targets.max())
            check_labels(smallest, largest, num_classes=num_classes, where=f"{len(targets)} targets")
        self.inputs = inputs
        self.targets = targets
        self.num_classes = num_classes
        self.plan_notes = tuple(plan_notes)
        self._bad = dict(bad or {})
        self._normalise = _image_normalisation(inputs, mean, std)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest target; None if they are not integers."""
        if self.targets.is_floating_point():
            return None
        return int(self.targets.min()), int(self.targets.max())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self._require_good([index])
        # A for loop over a sequence ends at the IndexError that a Tensor raises past its end.
        inputs = self.inputs[index]
        return (inputs if self._normalise is None else self._normalise(inputs)), self.targets[index]

    def fetch(self, ids: Int64Array) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and targets [n, ...] of the samples `ids`, int64 [n]; copies, which the caller may change.

        Raises IndexError if an id lies outside [0, N).
        """
        if self._bad:
            self._require_good(ids.tolist())
        index = torch.from_numpy(ids)
        inputs = self.inputs.index_select(0, index)
        return (inputs if self._normalise is None else self._normalise(inputs)), self.targets.index_select(0, index)

    def stored_form(self) -> tuple[ArrayDataset, ImageNormalisation | None]:
        """See `largebatch.data.stored`; a subclass with a `fetch` or `__getitem__` of its own has none."""
        cls = type(self)
        if (cls.fetch, cls.__getitem__) != (ArrayDataset.fetch, ArrayDataset.__getitem__):
            return self, None
        stored = copy.copy(self)
        stored._normalise = None
        return stored, self._normalise

    def _require_good(self, ids: Sequence[int]) -> None:
        for one in ids:
            if one in self._bad:
                raise DataError(self._bad[one])


def _image_normalisation(
    inputs: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ImageNormalisation | None:
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean}, std={std}: images need both or neither. Set both, or remove both.")
    if inputs.dtype != torch.uint8:
        if mean is not None:
            raise ValueError(
                f"mean and std have no effect on inputs of type {inputs.dtype}: only uint8 images are normalised. "
                f"Remove them, or normalise the inputs beforehand."
            )
        return None
    if inputs.dim() != 4:
        raise ValueError(
            f"uint8 inputs of shape {tuple(inputs.shape)}: uint8 inputs must be images [N, C, H, W]. "
            f"Convert tokens to int64 and other numbers to float32."
        )
    num_channels = inputs.shape[1]
    if mean is None or std is None:
        mean, std = [0.0] * num_channels, [1.0] * num_channels
    normalisation = ImageNormalisation(mean, std)
    if normalisation.num_channels != num_channels:
        raise ValueError(f"mean has {len(mean)} numbers for images of {num_channels} channels: give one per channel.")
    return normalisation

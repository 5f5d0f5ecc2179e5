"""Random crops, flips, cutout and mixing as a pure function of (seed, epoch, sample id)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError
from largebatch.data.items import Inputs, Skipped, change_images
from largebatch.data.micro_batch import MicroBatchData, Request
from largebatch.data.mixing import Mixing, mixed_targets

# One column of random numbers per decision, so that enabling one does not change the draws of the others.
_ROW, _COLUMN, _FLIP, _CUTOUT_ROW, _CUTOUT_COLUMN = range(5)


@dataclass(frozen=True)
class Augmentation:
    """Random crop of the padded image, then horizontal flip, then cutout, drawn per sample.

    The draws depend on (seed, epoch, sample id) alone, not on batch, rank, worker or earlier draws. So runs of any
    topology, and resumed runs, train on the same images.

    Attributes:
        seed: seed of the run.
        crop_padding: p; the image is padded with p zeros on each side and cropped to its size at one of (2p + 1)^2
            offsets. Images are already normalised, so zero is the mean colour.
        flip: mirror left and right with probability 1/2.
        cutout: side of a square of zeros, in pixels, centred at a random pixel and clipped at the border
            (DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout").
        mixing: of the augmented samples, in pairs; a `MicroBatchLoader` does it, a call does not.
        views: images of each sample, each with draws of its own; above 1, inputs are [n, views, C, H, W]. The draws of
            the first do not depend on their number.

    Raises:
        ValueError: if `crop_padding` or `cutout` is negative, or views are mixed; from a call, if `inputs` are not
            images.
    """

    seed: int
    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    mixing: Mixing | None = None
    views: int = 1

    def __post_init__(self) -> None:
        if self.views < 1 or (self.views > 1 and self.mixing is not None):
            raise ValueError(f"views={self.views}, mixing={self.mixing}: give 1 view or more; several are not mixed.")
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError(f"crop_padding={self.crop_padding}, cutout={self.cutout}: give pixels, 0 (off) or more.")

    def __call__(self, inputs: Tensor, ids: Int64Array, epochs: Int64Array) -> Tensor:
        """Augmented copies of the images [n, C, H, W] of samples `ids` [n] in their `epochs` [n]."""
        if self.mixing is not None and not self.changes_images:
            return inputs
        return self.apply(inputs, self.draws(ids, epochs).to(inputs.device))

    @property
    def changes_images(self) -> bool:
        """Whether a call changes anything."""
        return bool(self.crop_padding or self.flip or self.cutout)

    def mixed(
        self, batch: MicroBatchData, request: Request, skipped: Sequence[Skipped]
    ) -> tuple[MicroBatchData, Tensor]:
        """A loaded micro-batch with the targets of its mixed samples, and the table for `mix`."""
        assert self.mixing is not None
        rows, (ids, epochs) = request.pairs_of_rows(skipped), request.loaded(skipped)
        if batch.is_placeholder:
            ids, epochs = request.ids[:1], request.epochs[:1]
        parts = [batch.inputs] if isinstance(batch.inputs, Tensor) else list(batch.inputs.values())
        shape = parts[0].shape[1:]
        table, shares = self.mixing.table(self.seed, ids[rows[0]], epochs[rows[0]], rows, tuple(shape))
        return replace(batch, targets=mixed_targets(batch.targets, table, shares)), table

    def mix(self, inputs: Inputs, table: Tensor) -> Inputs:
        """The mixed samples of a micro-batch, on the device of both."""
        assert self.mixing is not None
        mixing = self.mixing
        if isinstance(inputs, Tensor):
            return mixing.apply(inputs, table)
        if len(inputs) > 1:
            raise DataError(
                f"data.augment.mixup and cutmix: a sample has the inputs {', '.join(inputs)}, and only one can be "
                "mixed. Set both to 0."
            )
        return change_images(inputs, lambda images: mixing.apply(images, table))

    def draws(self, ids: Int64Array, epochs: Int64Array) -> Tensor:
        """What is drawn for the samples `ids` [n] in their `epochs` [n]: uniform on [0, 1), float64 [n, 5 views]."""
        distinct, which = np.unique(epochs, return_inverse=True)
        keys = np.array([stream_key(self.seed, "augment", epoch) for epoch in distinct.tolist()], dtype=np.uint64)
        return torch.from_numpy(keyed_uniforms(keys[which], ids, 5 * self.views))

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Augmented copies of the images [n, C, H, W], or of their views, by `draws`, on the device of both.

        Pixels are moved, or set to 0: every device gives the same bits.
        """
        if self.views > 1 and inputs.dim() == 5 and inputs.shape[1] == self.views:
            of_one = replace(self, views=1)
            return of_one.apply(inputs.flatten(0, 1), draws.reshape(-1, 5)).unflatten(0, inputs.shape[:2])
        if inputs.dim() != 4 or self.views > 1:
            raise ValueError(
                f"Augmentation takes images [n, C, H, W], not inputs of shape {tuple(inputs.shape)}. "
                f"Disable crop_padding, flip and cutout for other data."
            )
        if self.crop_padding or self.flip:
            inputs = self._crop_and_flip(inputs, draws)
        # A product with a mask is three times as fast as masked_fill.
        return inputs * ~self._cutout_mask(inputs, draws) if self.cutout else inputs

    def _crop_and_flip(self, inputs: Tensor, uniforms: Tensor) -> Tensor:
        num_images, num_channels, height, width = inputs.shape
        padding = self.crop_padding
        rows = torch.arange(height, device=inputs.device) + _integers(uniforms[:, _ROW], 2 * padding + 1)
        columns = torch.arange(width, device=inputs.device).expand(num_images, -1)
        if self.flip:
            columns = torch.where(uniforms[:, _FLIP, None] < 0.5, columns.flip(1), columns)
        columns = columns + _integers(uniforms[:, _COLUMN], 2 * padding + 1)
        # Crop and flip are one permutation of pixels, the same for all channels: one gather over the padded image.
        places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(num_images, 1, -1)
        padded = F.pad(inputs, (padding,) * 4).flatten(2)
        return padded.gather(2, places.expand(-1, num_channels, -1)).view(inputs.shape)

    def _cutout_mask(self, inputs: Tensor, uniforms: Tensor) -> Tensor:
        height, width = inputs.shape[2:]
        in_rows = self._in_span(height, uniforms[:, _CUTOUT_ROW])
        in_columns = self._in_span(width, uniforms[:, _CUTOUT_COLUMN])
        return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)

    def _in_span(self, length: int, uniforms: Tensor) -> Tensor:
        """Bool [n, length]: `cutout` positions around a random centre."""
        start = _integers(uniforms, length) - self.cutout // 2
        places = torch.arange(length, device=uniforms.device)
        return (places >= start) & (places < start + self.cutout)


def _integers(uniforms: Tensor, count: int) -> Tensor:
    """Integers [n, 1], uniform on range(count)."""
    return (uniforms * count).to(torch.int64)[:, None]

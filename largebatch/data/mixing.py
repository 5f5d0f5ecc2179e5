"""Mixup and CutMix: every sample is mixed with its neighbour in the order of the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError

Float64Array = npt.NDArray[np.float64]

_IS_MIXED, _SWITCH, _SHARE, _ROW, _COLUMN = range(5)
# Shares of mixup are multiples of 2^-16: exact in float32, and free of the last digits of a mathematical library.
_STEPS = 2**16
_OWN, _PARTNER, _WEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = range(7)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of augmented samples, each with a share of its own.

    The partner of the sample at position p of the run is the one at position p XOR 1: its neighbour in a shuffled
    order, on any number of ranks. Both lie in one micro-batch where these have even sizes, so no sample is loaded
    twice; at an odd border the partner is loaded in addition. What is drawn depends on (seed, epoch, sample id) alone.

    Mixup: x = s x1 + (1 - s) x2 with s ~ Beta(mixup, mixup). CutMix: a box of x1 is cut out of x2; its sides are
    sqrt(1 - s) of the image's, with s ~ Beta(cutmix, cutmix), its centre is a random pixel, it ends at the border, and
    s becomes the share of x1 that is left. The loss is s l(y1) + (1 - s) l(y2), see `MixedLabels`.

    Differs from the papers' code, where one s serves a whole micro-batch: here every sample draws its own, as in timm's
    `mode="elem"`. A pair is a permutation of the batch, as there.

    Attributes:
        mixup: alpha of mixup; 0: off.
        cutmix: alpha of CutMix; 0: off.
        probability: of a sample to be mixed.
        switch: probability of CutMix where both are on.

    Raises:
        ValueError: if a number is outside its range, or has no effect.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.mixup < np.inf and 0 <= self.cutmix < np.inf) or not self.mixup + self.cutmix:
            raise ValueError(f"mixup={self.mixup}, cutmix={self.cutmix}: give alpha, 0 (off) or more, of at least one.")
        if not 0 < self.probability <= 1 or not 0 <= self.switch <= 1:
            raise ValueError(
                f"probability={self.probability}, switch={self.switch}: give probabilities; the first above 0."
            )

    def table(
        self, seed: int, ids: Int64Array, epochs: Int64Array, rows: Int64Array, shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """What is done to each of n samples, float64 [n, 7], and the share of its own label, float64 [n].

        Args:
            seed: of the run.
            ids: of the n samples.
            epochs: of the n samples.
            rows: [2, n]: the row of each sample, and of its partner, among those that were loaded; a sample whose
                partner could not be loaded is its own partner, and stays as it is.
            shape: of one input.
        """
        drawn = _uniforms(seed, ids, epochs)
        is_mixed = (drawn[:, _IS_MIXED] < self.probability) & (rows[0] != rows[1])
        is_cut = is_mixed & (drawn[:, _SWITCH] < (self.switch if self.mixup and self.cutmix else float(not self.mixup)))
        weights, boxes = np.ones(len(ids)), np.zeros((len(ids), 4))
        if (blended := is_mixed & ~is_cut).any():
            weights[blended] = np.round(_beta(self.mixup, drawn[blended, _SHARE]) * _STEPS) / _STEPS
        shares = weights.copy()
        if is_cut.any():
            height, width = _image_size(shape)
            boxes[is_cut] = _boxes(_beta(self.cutmix, drawn[is_cut, _SHARE]), drawn[is_cut], height, width)
            areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
            shares[is_cut] = 1 - areas[is_cut] / (height * width)
        return torch.from_numpy(np.column_stack([*rows, weights, boxes])), torch.from_numpy(shares)

    def apply(self, inputs: Tensor, table: Tensor) -> Tensor:
        """Mixed samples [n, ...] of the loaded ones, of any number of rows, on the device of both.

        Two products and a sum, each rounded, and a choice: every device gives the same bits.
        """
        own, partners = (inputs.index_select(0, table[:, one].to(torch.int64)) for one in (_OWN, _PARTNER))
        weights = table[:, _WEIGHT].to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
        mixed = own
        if self.mixup:
            mixed = torch.where(weights < 1, own * weights + partners * (1 - weights), own)
        if not self.cutmix:
            return mixed
        in_rows = _in_span(inputs.shape[-2], table[:, _TOP], table[:, _BOTTOM])
        in_columns = _in_span(inputs.shape[-1], table[:, _LEFT], table[:, _RIGHT])
        return torch.where((in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1), partners, mixed)


def mixed_targets(targets: Tensor, table: Tensor, shares: Tensor) -> Tensor:
    """The labels of each of n samples and of its partner, and the share of the first, for `MixedLabels`.

    Args:
        targets: of the loaded samples: class numbers [m], or numbers for each class [m, C] with C > 1.
        table: of `Mixing.table`.
        shares: likewise.

    Returns:
        float64 [n, 3], or [n, 2 C + 1] of the type of the targets.

    Raises:
        DataError: for other targets.
    """
    is_number = targets.dim() == 1 and not targets.is_floating_point()
    if not is_number and (targets.dim() != 2 or targets.shape[1] < 2):
        kind = str(targets.dtype).removeprefix("torch.")
        raise DataError(
            f"data.augment.mixup and cutmix mix classes: targets are class numbers [n], or numbers for each class "
            f"[n, C], and these are {kind} {list(targets.shape)}. Set both to 0."
        )
    wide = targets.double()[:, None] if is_number else targets
    own, partners = (wide[table[:, one].to(torch.int64)] for one in (_OWN, _PARTNER))
    return torch.cat([own, partners, shares[:, None].to(wide.dtype)], dim=1)


def _uniforms(seed: int, ids: Int64Array, epochs: Int64Array) -> Float64Array:
    distinct, which = np.unique(epochs, return_inverse=True)
    keys = np.array([stream_key(seed, "mix", epoch) for epoch in distinct.tolist()], dtype=np.uint64)
    return keyed_uniforms(keys[which], ids, 5)


def _beta(alpha: float, uniforms: Float64Array) -> Float64Array:
    """Numbers with the distribution Beta(alpha, alpha), by its inverse."""
    from scipy.special import betaincinv  # its import takes a fifth of a second

    shares: Float64Array = betaincinv(alpha, alpha, uniforms)
    return shares


def _image_size(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 3:
        raise DataError(
            f"data.augment.cutmix cuts boxes out of images [C, H, W], and inputs are {list(shape)}. Set it to 0; mixup "
            "takes inputs of any shape."
        )
    return shape[1], shape[2]


def _boxes(shares: Float64Array, drawn: Float64Array, height: int, width: int) -> Float64Array:
    """First row, last row + 1, first column, last column + 1 of each box. Source: Yun et al. 2019, algorithm A1."""
    sides = np.sqrt(1 - shares)
    spans = []
    for length, column in ((height, _ROW), (width, _COLUMN)):
        half, centre = (length * sides).astype(np.int64) // 2, (drawn[:, column] * length).astype(np.int64)
        spans += [np.clip(centre - half, 0, length), np.clip(centre + half, 0, length)]
    return np.column_stack(spans).astype(np.float64)


def _in_span(length: int, first: Tensor, end: Tensor) -> Tensor:
    """Bool [n, length]."""
    places = torch.arange(length, device=first.device)
    return (places >= first[:, None]) & (places < end[:, None])

"""Sets of any length that are drawn when they are read: stand-ins for images and tokens, without files."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.batch.random_keys import keyed_bits, keyed_uniforms, stream_key
from largebatch.data.array import ImageNormalisation, Int64Array
from largebatch.data.errors import Split, check_split

_SIGNAL = 0.5  # share of a pixel that is its class's


class DrawnImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of bytes, half of them the pattern of their class and half noise, and their labels; never in memory.

    For plans, benchmarks and short tries of a recipe at the true length and size of a set that is not at hand. Sample
    i depends on (seed, split, i) alone; both splits share the patterns.

    Args:
        num_samples: length.
        num_classes: labels lie in [0, num_classes).
        shape: [C, H, W], C of 1 or 3.
        split: "train" or "validation".
        seed: of patterns and samples.

    Raises:
        ValueError: if a count is too small.
    """

    def __init__(
        self, num_samples: int, num_classes: int, shape: Sequence[int], split: Split, *, seed: int = 0
    ) -> None:
        check_split(split)
        if num_samples < 1 or num_classes < 2 or len(shape) != 3 or min(shape) < 1 or shape[0] not in (1, 3):
            raise ValueError(
                f"num_samples={num_samples}, num_classes={num_classes}, shape={list(shape)}: use at least 1 sample, 2 "
                "classes, and images [C, H, W] of 1 or 3 channels."
            )
        self._num_samples, self._num_classes, self._shape = num_samples, num_classes, tuple(shape)
        self._key = stream_key(seed, "drawn images", split)
        self._pattern_key = stream_key(seed, "drawn images", "patterns")
        self._normalise: ImageNormalisation | None = ImageNormalisation([0.5] * shape[0], [0.25] * shape[0])

    def __len__(self) -> int:
        return self._num_samples

    @property
    def label_range(self) -> tuple[int, int]:
        """Smallest and largest label that may occur."""
        return 0, self._num_classes - 1

    def stored_form(self) -> tuple[DrawnImages, ImageNormalisation | None]:
        """See `largebatch.data.stored`."""
        stored = copy.copy(self)
        stored._normalise = None
        return stored, self._normalise

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        inputs, targets = self.fetch(np.array([index]))
        return inputs[0], targets[0]

    def fetch(self, ids: Int64Array) -> tuple[Tensor, Tensor]:
        """Images [n, C, H, W] and labels [n] of the samples `ids`, int64 [n]."""
        labels = (keyed_uniforms(stream_key(self._key, "label"), ids, 1)[:, 0] * self._num_classes).astype(np.int64)
        noise, patterns = self._bytes(self._key, ids), self._bytes(self._pattern_key, labels)
        pixels = torch.from_numpy((_SIGNAL * patterns + (1 - _SIGNAL) * noise).astype(np.uint8))
        return (pixels if self._normalise is None else self._normalise(pixels)), torch.from_numpy(labels)

    def _bytes(self, key: int, ids: Int64Array) -> Any:
        """Uniform bytes [n, C, H, W]."""
        size = int(np.prod(self._shape))
        words = keyed_bits(key, ids, -(-size // 8)).astype("<u8")
        return words.view(np.uint8)[:, :size].reshape(len(ids), *self._shape)


class DrawnTokens(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a random walk over a vocabulary and their next tokens; never in memory.

    As `masked_tokens`, of full length: after x comes 5 x + 3 or 5 x + 4 modulo `vocab_size`, with equal odds, so the
    minimum loss is log 2 per token. Sample i depends on (seed, split, i) alone.

    Raises ValueError if a count is too small.
    """

    def __init__(self, num_samples: int, context_length: int, vocab_size: int, split: Split, *, seed: int = 0) -> None:
        check_split(split)
        if num_samples < 1 or context_length < 1 or vocab_size < 2:
            raise ValueError(
                f"num_samples={num_samples}, context_length={context_length}, vocab_size={vocab_size}: use at least 1 "
                "sample, 1 token per sample and 2 different tokens."
            )
        self._num_samples, self._vocab_size, self.context_length = num_samples, vocab_size, context_length
        self._key = stream_key(seed, "drawn tokens", split)

    def __len__(self) -> int:
        return self._num_samples

    @property
    def label_range(self) -> tuple[int, int]:
        """Smallest and largest token that may occur."""
        return 0, self._vocab_size - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.fetch(np.array([index]))
        return inputs[0], targets[0]

    def fetch(self, ids: Int64Array) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows `ids`, int64 [n, context_length] each."""
        uniforms = keyed_uniforms(self._key, ids, self.context_length + 1)
        tokens = np.empty((len(ids), self.context_length + 1), dtype=np.int64)
        tokens[:, 0] = (uniforms[:, 0] * self._vocab_size).astype(np.int64)
        coins = (uniforms[:, 1:] < 0.5).astype(np.int64)
        for place in range(self.context_length):
            tokens[:, place + 1] = (5 * tokens[:, place] + 3 + coins[:, place]) % self._vocab_size
        pairs = torch.from_numpy(tokens)
        return pairs[:, :-1].contiguous(), pairs[:, 1:].contiguous()

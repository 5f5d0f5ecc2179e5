"""A known fraction of wrong labels, to study memorisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data.array import Int64Array
from largebatch.data.stored import stored_form


class NoisyLabels(Dataset[Any]):
    """`dataset` with each label replaced by a uniformly random class with probability `share`.

    It is in memory if `dataset` is. The random class may be the right one: labels are wrong with probability
    share (1 - 1/num_classes), and a share of 1 leaves nothing to learn. A label depends on (seed, sample id) alone: it
    is the same in every epoch, on every rank and with or without augmentation, so that it can be memorised.

    Attributes:
        clean: the data set with its original labels.

    Raises:
        ValueError: if the share is not in (0, 1], there are fewer than 2 classes, or targets are not class numbers.

    Source: Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", partially corrupted
    labels.
    """

    def __init__(self, dataset: Any, share: float, *, num_classes: int, seed: int) -> None:
        _check_targets(_target_of(dataset[0]))
        if not 0 < share <= 1 or num_classes < 2:
            raise ValueError(
                f"share={share}, num_classes={num_classes}: the share must be in (0, 1], with at least 2 classes."
            )
        self.clean = dataset
        self._share, self._num_classes, self._seed = share, num_classes, seed
        self._key = stream_key(seed, "label noise")
        if hasattr(dataset, "fetch"):
            self.fetch = self._fetch
            self.label_range = (0, num_classes - 1)

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored, complete = stored_form(self.clean)
        return NoisyLabels(stored, self._share, num_classes=self._num_classes, seed=self._seed), complete

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        inputs, target = self.clean[index]
        ids = np.array([index], dtype=np.int64)
        return inputs, self._noisy(torch.as_tensor(target).reshape(1), ids)[0]

    def _fetch(self, ids: Int64Array) -> tuple[Any, Tensor]:
        inputs, targets = self.clean.fetch(ids)
        return inputs, self._noisy(targets, ids)

    def _noisy(self, targets: Tensor, ids: Int64Array) -> Tensor:
        replaced, drawn = keyed_uniforms(self._key, ids, 2).T
        classes = torch.from_numpy((drawn * self._num_classes).astype(np.int64))
        return torch.where(torch.from_numpy(replaced < self._share), classes, targets.to(torch.int64))


def _target_of(item: Any) -> Any:
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[1]
    raise ValueError(f"items are a {type(item).__name__}: label noise needs items (input, label).")


def _check_targets(target: Any) -> None:
    value = torch.as_tensor(target)
    if value.dim() or value.is_floating_point() or value.dtype == torch.bool:
        raise ValueError(
            f"a target is {value.dtype} of shape {list(value.shape)}: label noise needs class numbers. Disable label "
            "noise."
        )

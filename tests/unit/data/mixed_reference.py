"""Mixup and CutMix written from the papers, sample by sample, in plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import keyed_uniforms, stream_key


def mixed_sample(
    images: np.ndarray, position: int, order: SampleOrder, *, mixup: float, cutmix: float, probability: float = 1.0
) -> tuple[np.ndarray, int, int, float]:
    """The input at a position of the run, the ids of both its samples, and the share of the first.

    Args:
        images: of the set, already augmented, [N, C, H, W].
        position: in the run.
        order: of the samples.
        mixup, cutmix, probability: as of `Mixing`.
    """
    ids = [int(order.ids(place, 1)[0]) for place in (position, position + 1 if position % 2 == 0 else position - 1)]
    own, other = images[ids[0]], images[ids[1]]
    key = stream_key(order.seed, "mix", position // order.num_samples)
    is_mixed, switch, share, row, column = keyed_uniforms(key, np.array(ids[:1]), 5)[0]
    if is_mixed >= probability:
        return own, *ids, 1.0
    if not cutmix or (mixup and switch >= 0.5):
        lam = round(float(scipy.stats.beta.ppf(share, mixup, mixup)) * 65536) / 65536
        return lam * own + (1 - lam) * other, *ids, lam
    height, width = own.shape[-2:]
    side = math.sqrt(1 - float(scipy.stats.beta.ppf(share, cutmix, cutmix)))
    mixed: Any = own.copy()
    top, bottom = (min(max(int(row * height) + sign * (int(height * side) // 2), 0), height) for sign in (-1, 1))
    left, right = (min(max(int(column * width) + sign * (int(width * side) // 2), 0), width) for sign in (-1, 1))
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed, *ids, 1 - (bottom - top) * (right - left) / (height * width)

"""Synthetic tasks with a known truth, for tests and dry runs: no files, no download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data.array import ArrayDataset
from largebatch.data.errors import Split, check_split
from largebatch.distributed.host_memory import require_memory

IGNORED_TARGET = -100


def random_classification(
    num_samples: int,
    num_classes: int,
    shape: Sequence[int],
    split: Split,
    *,
    seed: int = 0,
) -> ArrayDataset:
    """Gaussian inputs [N, *shape], labelled by a random linear teacher: label = argmax over classes of W x.

    A linear model can reach accuracy 1. Both splits share the teacher; their inputs are independent. Sample i does not
    depend on `num_samples`.

    Raises ValueError if a count is too small.
    """
    check_split(split)
    dimension = int(math.prod(shape))
    if num_samples < 1 or num_classes < 2 or dimension < 1:
        raise ValueError(
            f"num_samples={num_samples}, num_classes={num_classes}, shape={list(shape)}: "
            f"use at least 1 sample, 2 classes and 1 number per sample."
        )
    teacher = keyed_normals(stream_key(seed, "random_classification", "teacher"), num_classes, dimension)
    inputs = keyed_normals(stream_key(seed, "random_classification", split), num_samples, dimension)
    labels = torch.from_numpy((inputs @ teacher.T).argmax(axis=1))
    images = torch.from_numpy(inputs).to(torch.float32).view(num_samples, *shape)
    return ArrayDataset(images, labels, num_classes=num_classes)


def masked_tokens(
    num_samples: int,
    context_length: int,
    vocab_size: int,
    split: Split,
    *,
    seed: int = 0,
) -> ArrayDataset:
    """Sequences [N, T] of unequal length: targets [N, T] are -100 from each sample's length on, and inputs are 0 there.

    Lengths are uniform on 1..T, so samples, micro-batches and ranks hold unequal numbers of valid tokens. The next
    token is 5 x + 3 or 5 x + 4 modulo `vocab_size`, with equal odds: the minimum loss is log 2 per token.

    Raises ValueError if a count is too small.
    """
    check_split(split)
    if num_samples < 1 or context_length < 1 or vocab_size < 2:
        raise ValueError(
            f"num_samples={num_samples}, context_length={context_length}, vocab_size={vocab_size}: "
            f"use at least 1 sample, 1 token per sample and 2 different tokens."
        )
    require_memory(f"{num_samples:,} samples of {context_length:,} tokens", 8 * num_samples * (context_length + 2))
    uniforms = keyed_uniforms(
        stream_key(seed, "masked_tokens", split), np.arange(num_samples, dtype=np.int64), context_length + 2
    )
    lengths = (uniforms[:, 0] * context_length).astype(np.int64) + 1
    tokens = np.empty((num_samples, context_length + 1), dtype=np.int64)
    tokens[:, 0] = (uniforms[:, 1] * vocab_size).astype(np.int64)
    coins = (uniforms[:, 2:] < 0.5).astype(np.int64)
    for place in range(context_length):
        tokens[:, place + 1] = (5 * tokens[:, place] + 3 + coins[:, place]) % vocab_size
    valid = np.arange(context_length) < lengths[:, None]
    inputs = np.where(valid, tokens[:, :-1], 0)
    targets = np.where(valid, tokens[:, 1:], IGNORED_TARGET)
    return ArrayDataset(torch.from_numpy(inputs), torch.from_numpy(targets))


def paired_views(
    num_samples: int,
    shape: Sequence[int],
    split: Split,
    *,
    noise: float = 0.5,
    seed: int = 0,
) -> ArrayDataset:
    """Samples with two views, [N, 2, *shape]: x + noise e, with x of the sample and e of the view, standard normal.

    The cosine of the two views of a sample is near 1 / (1 + noise^2), of two samples near 0. Targets are zeros [N],
    since contrastive losses need none. Sample i does not depend on `num_samples`.

    Raises ValueError if a count is too small or `noise` is negative.
    """
    check_split(split)
    dimension = int(math.prod(shape))
    if num_samples < 1 or dimension < 1 or not noise >= 0:
        raise ValueError(
            f"num_samples={num_samples}, shape={list(shape)}, noise={noise}: use at least 1 sample, 1 number per view, "
            "and noise of 0 or more."
        )
    draws = keyed_normals(stream_key(seed, "paired_views", split), num_samples, 3 * dimension)
    common, first, second = np.split(draws, 3, axis=1)
    views = torch.from_numpy(np.stack([common + noise * first, common + noise * second], axis=1))
    inputs = views.to(torch.float32).view(num_samples, 2, *shape)
    return ArrayDataset(inputs, torch.zeros(num_samples, dtype=torch.int64))


def keyed_normals(key: int, num_rows: int, num_columns: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers [rows, columns] by the Box-Muller transform (1958); row i depends on (key, i) alone.

    Raises ValueError, before anything is drawn, if they exceed the memory of the machine.
    """
    require_memory(f"{num_rows:,} times {num_columns:,} random numbers", 8 * num_rows * num_columns)
    half = -(-num_columns // 2)
    uniforms = keyed_uniforms(key, np.arange(num_rows, dtype=np.int64), 2 * half)
    radius = np.sqrt(-2 * np.log1p(-uniforms[:, :half]))
    angle = 2 * np.pi * uniforms[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :num_columns]

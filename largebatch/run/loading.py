"""How a run loads its samples, and the loaders that it keeps from before its process group until its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from largebatch.data import Augmentation, EvaluationLoader
from largebatch.run.config.schema import DataConfig, TrainConfig
from largebatch.run.precision.device import Decision
from largebatch.run.prepare import Prepared

_DEPTH = 2  # one to compute next, and one that is being copied


def prefetch_of(data: DataConfig, train: Any, *, feeds_gpu: bool) -> Decision:
    """Micro-batches that a thread prepares ahead: what the config says, or 2 on a GPU where a thread can load them."""
    if data.prefetch is not None:
        return Decision(data.prefetch, "data.prefetch")
    if not feeds_gpu:
        return Decision(0, "no GPU: a thread would take a core from the training")
    if hasattr(train, "fetch") or data.num_workers:
        return Decision(_DEPTH, "one to compute next, one that is being copied; data.prefetch changes it")
    return Decision(0, "data.num_workers=0: samples loaded one by one draw from the generators of this process")


def prefetch_rows(prepared: Prepared) -> list[tuple[str, str, str]]:
    """Row of the plan (quantity, value, source); without a GPU only where something is prepared ahead."""
    feeds_gpu = prepared.decisions.device.is_gpu
    one = prefetch_of(prepared.config.data, prepared.train, feeds_gpu=feeds_gpu)
    value = f"{one.value} micro-batch{'' if one.value == 1 else 'es'}"
    return [("prepared ahead", value, one.reason)] if feeds_gpu or one.value else []


@contextlib.contextmanager
def evaluation_loaders(
    config: TrainConfig, train: Any, validation: Any, *, feeds_gpu: bool, augment: Augmentation | None = None
) -> Iterator[dict[str, EvaluationLoader]]:
    """Of the sets of `EvaluationObserver`, with workers that live to the end of the context.

    Args:
        config: of the run.
        train: training set without augmentation.
        validation: validation set.
        feeds_gpu: whether batches are put onto the GPU of this process.
        augment: of training. Evaluations have it only where samples have several views, which would be equal without.
    """
    of_views = augment if config.data.augment.views > 1 else None
    found = {}
    with contextlib.ExitStack() as stack:
        for name, dataset in (("train", train), ("val", validation)):
            # One of the two sets may be in memory while the other is too large for it.
            num_workers = 0 if hasattr(dataset, "fetch") else config.data.num_workers
            timeout_s = config.data.timeout_s if num_workers else 0
            found[name] = EvaluationLoader(
                dataset,
                num_workers=num_workers,
                timeout_s=timeout_s,
                skips=config.data.skips,
                to_gpu=feeds_gpu,
                augment=of_views,
            )
            stack.callback(found[name].close)
        yield found

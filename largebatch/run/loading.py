"""How a run loads its samples, and the loaders that it keeps from before its process group until its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from largebatch.data import EvaluationLoader
from largebatch.run.config.schema import DataConfig, TrainConfig

_DEPTH = 2  # one to compute next, and one that is being copied


def prefetch_of(data: DataConfig, train: Any, *, feeds_gpu: bool) -> int:
    """Micro-batches that a thread prepares ahead: what the config says, or 2 on a GPU where a thread can load them.

    Without a GPU the thread competes with the training thread for the same cores.
    """
    if data.prefetch is not None:
        return data.prefetch
    return _DEPTH if feeds_gpu and (hasattr(train, "fetch") or data.num_workers) else 0


@contextlib.contextmanager
def evaluation_loaders(
    config: TrainConfig, train: Any, validation: Any, *, feeds_gpu: bool
) -> Iterator[dict[str, EvaluationLoader]]:
    """Of the sets of `EvaluationObserver`, with workers that live to the end of the context.

    Args:
        config: of the run.
        train: training set without augmentation.
        validation: validation set.
        feeds_gpu: whether batches are put onto the GPU of this process.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        for name, dataset in (("train", train), ("val", validation)):
            # One of the two sets may be in memory while the other is too large for it.
            num_workers = 0 if hasattr(dataset, "fetch") else config.data.num_workers
            timeout_s = config.data.timeout_s if num_workers else 0
            found[name] = EvaluationLoader(
                dataset, num_workers=num_workers, timeout_s=timeout_s, skips=config.data.skips, to_gpu=feeds_gpu
            )
            stack.callback(found[name].close)
        yield found

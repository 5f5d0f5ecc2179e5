"""`largebatch bench data`: what loading costs the training thread, in each way that a run can load."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from largebatch.diagnostics.intervals import median_interval
from largebatch.experiments.bench.settings import at_least, setting

if TYPE_CHECKING:
    from largebatch.data import MicroBatchLoader
    from largebatch.data.items import Augment

_NUM_SAMPLES, _WARMUP = 8192, 5


@dataclass(frozen=True)
class Settings:
    """What is loaded."""

    micro: int = setting(512, at_least(1), "N", "images per micro-batch (default: 512)")
    size: int = setting(32, at_least(8), "PIXELS", "side of the images, 8 or more (default: 32)")
    padding: int = setting(4, at_least(0), "PIXELS", "of random crops; 0: no crops and no flips (default: 4)")
    prefetch: int = setting(2, at_least(1), "N", "micro-batches that the thread prepares ahead (default: 2)")
    batches: int = setting(100, at_least(10), "N", "micro-batches to time, 10 or more (default: 100)")


def measure(settings: Settings) -> bool:
    """Print what loading images in memory costs the training thread, and how fast each way is at most; returns True.

    For the first figure the thread sleeps between micro-batches as long as loading one takes it without help: so it
    does where a GPU computes and the host waits for it. For the second it takes one right after the other.
    """
    import torch

    from largebatch.records.trackers.tables import print_table

    pause = statistics.median(_seconds(_loader(settings), settings.batches))
    rows = []
    for name, what, options in _ways(settings):
        share = _seconds(_loader(settings, **options), settings.batches, pause)
        low, high = median_interval(sorted(share))
        whole = sum(_seconds(_loader(settings, **options), settings.batches)) / settings.batches
        text = f"{1e3 * statistics.median(share):.2f} ({1e3 * low:.2f}-{1e3 * high:.2f})"
        rows.append((name, what, text, f"{settings.micro / whole:,.0f}"))
    size = f"{settings.micro} images of {settings.size} x {settings.size}"
    title = f"bench data: {size}, {torch.get_num_threads()} threads of torch"
    headers = "prepared by", "handed over", "ms of the training thread", "images/s at most"
    print_table(headers, rows, title=title, styles=("", "", "bold"))
    return True


def _ways(settings: Settings) -> list[tuple[str, str, dict[str, Any]]]:
    """Who prepares, what it hands over, and how the loader is made."""
    import torch

    ahead = {"prefetch": settings.prefetch}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("training thread", "float32", {}),
        ("thread ahead", "float32", ahead),
        ("thread ahead", "bytes and draws, as to a GPU", {**ahead, "as_stored": True}),
    ]
    if torch.cuda.is_available():
        ways.append(("thread ahead", "float32 on the GPU", {**ahead, "to_gpu": True}))
    return ways


def _loader(settings: Settings, *, as_stored: bool = False, **options: Any) -> MicroBatchLoader:
    """Of random images; `as_stored`: what is left to the host where a GPU completes them, without the copies."""
    import torch

    from largebatch.batch.order import SampleOrder
    from largebatch.batch.plan import BatchPlan
    from largebatch.data import ArrayDataset, Augmentation, MicroBatchLoader

    shape = _NUM_SAMPLES, 3, settings.size, settings.size
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ArrayDataset(pixels, torch.zeros(_NUM_SAMPLES, dtype=torch.int64), mean=[0.5] * 3, std=[0.25] * 3)
    augmentation = Augmentation(0, crop_padding=settings.padding, flip=True)
    augment: Augment | None = augmentation if settings.padding else None
    if as_stored:
        images, _ = images.stored_form()
        if settings.padding:
            augment = lambda pixels, ids, epochs: (pixels, augmentation.draws(ids, epochs))[0]  # noqa: E731
    plan = BatchPlan.pinned(global_batch_size=settings.micro, world_size=1, micro_batch_size=settings.micro)
    return MicroBatchLoader(images, SampleOrder(_NUM_SAMPLES, 0), plan, 0, augment=augment, **options)


def _seconds(loader: MicroBatchLoader, count: int, pause: float = 0.0) -> list[float]:
    """Seconds that this thread spends on each of `count` micro-batches, with a pause before each."""
    batches, found = loader.micro_batches(0, count + _WARMUP), []
    for _ in range(count + _WARMUP):
        if pause:
            time.sleep(pause)
        started = time.perf_counter()
        next(batches)
        found.append(time.perf_counter() - started)
    loader.close()
    return found[_WARMUP:]

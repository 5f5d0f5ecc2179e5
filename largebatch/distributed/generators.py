"""The global generators that models and data sets draw from: torch's on the CPU, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_generators(device: torch.device | None = None) -> Iterator[None]:
    """Restore their states on exit, and that of the generator of `device` if it is a GPU."""
    gpu = None if device is None or device.type != "cuda" else torch.cuda.default_generators[device.index or 0]
    state_of_gpu = None if gpu is None else gpu.get_state()
    states = torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.random.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        if gpu is not None and state_of_gpu is not None:
            gpu.set_state(state_of_gpu)


def seed_generators(key: int, device: torch.device | None = None) -> None:
    """Seed them with a 64-bit key, and the generator of `device` if that is a GPU: models draw from it there."""
    # Not torch.manual_seed: it would seed the GPU's generators as well, and data are drawn on the CPU.
    torch.random.default_generator.manual_seed(key)
    # The legacy generators, because users' transforms and models draw from them.
    # The third word: numpy and random expand a key alike, so the same key would give both the same numbers.
    np.random.seed([key & 0xFFFFFFFF, key >> 32, 1])  # noqa: NPY002
    random.seed(key)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)
